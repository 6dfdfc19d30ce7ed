/* qmp: speaks QMP to a QEMU of this machine: several steps over one connection, because a program started is dear under emulation.
 *
 *   qmp SOCKET MILLISECONDS STEP...
 *
 * A step is a command in JSON ({"execute":"stop"}), or `wait:REGEX`: until an event comes, or has come on this connection and was not
 * waited for, whose line matches the extended regular expression. The socket is awaited too. Every line from QEMU is printed as it is,
 * events among them, but for the greeting and the answer to the handshake. At the first error that QEMU answers it ends.
 *
 * Exit status: 0; 1 QEMU answered an error (the last line printed); 2 called wrongly; 3 QEMU is not there, or gone; 4 not in time.
 * Protocol: QEMU's docs/interop/qmp-spec.rst.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST_LINE (1 << 20)
#define MOST_EVENTS 256

static int stream = -1;
static long long end_ms;
static char buffer[MOST_LINE + 1];
static size_t filled, taken;
static char *events[MOST_EVENTS]; /* came, and were not waited for */
static int event_count;

static long long now_ms(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000ll + time.tv_nsec / 1000000;
}

static void leave(int status, const char *why)
{
	fflush(stdout);
	fprintf(stderr, "qmp: %s\n", why);
	exit(status);
}

static int left_ms(void)
{
	long long left = end_ms - now_ms();
	return left > 0 ? (int)left : 0;
}

static void reach(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path)
		leave(2, "the socket's path is too long");
	strcpy(address.sun_path, path);
	for (;;) {
		stream = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (stream < 0)
			leave(3, strerror(errno));
		if (!connect(stream, (struct sockaddr *)&address, sizeof address))
			return;
		int why = errno;
		close(stream);
		if (!left_ms() || (why != ENOENT && why != ECONNREFUSED))
			leave(3, strerror(why));
		struct timespec pause = {.tv_nsec = 50000000}; /* QEMU takes a second to be there, and each try is dear */
		nanosleep(&pause, NULL);
	}
}

/* The next line from QEMU, without its end; it stays until the next call. */
static char *next_line(void)
{
	memmove(buffer, buffer + taken, filled - taken);
	filled -= taken;
	taken = 0;
	size_t searched = 0;
	for (;;) {
		char *end = memchr(buffer + searched, '\n', filled - searched);
		if (end) {
			*end = 0;
			taken = end - buffer + 1;
			if (end > buffer && end[-1] == '\r')
				end[-1] = 0;
			return buffer;
		}
		searched = filled;
		if (filled == MOST_LINE)
			leave(3, "a line without an end");
		struct pollfd poller = {.fd = stream, .events = POLLIN};
		if (poll(&poller, 1, left_ms()) <= 0)
			leave(4, "no answer in time");
		ssize_t got = read(stream, buffer + filled, MOST_LINE - filled);
		if (got <= 0)
			leave(3, "QEMU is gone");
		filled += got;
	}
}

/* Whether the outermost object of a line of JSON has this key. */
static int has_key(const char *line, const char *key)
{
	int depth = 0;
	size_t length = strlen(key);
	for (const char *at = line; *at; at++) {
		if (*at == '{' || *at == '[') {
			depth++;
		} else if (*at == '}' || *at == ']') {
			depth--;
		} else if (*at == '"') {
			const char *begin = ++at;
			while (*at && *at != '"')
				at += *at == '\\' && at[1] ? 2 : 1;
			if (!*at)
				return 0;
			const char *after = at + 1 + strspn(at + 1, " ");
			if (depth == 1 && *after == ':' && (size_t)(at - begin) == length && !memcmp(begin, key, length))
				return 1;
		}
	}
	return 0;
}

static void keep_event(const char *line)
{
	if (event_count == MOST_EVENTS) {
		free(events[0]);
		memmove(events, events + 1, --event_count * sizeof *events);
	}
	events[event_count++] = strdup(line);
}

static void command(const char *text, int quiet)
{
	/* In one piece: QEMU obeys at the last brace, and has gone before a line's end that comes later when it was told to quit. */
	struct iovec piece[2] = {{(char *)text, strlen(text)}, {"\n", 1}};
	struct msghdr message = {.msg_iov = piece, .msg_iovlen = 2};
	if (sendmsg(stream, &message, MSG_NOSIGNAL) != (ssize_t)piece[0].iov_len + 1)
		leave(3, "QEMU is gone");
	for (;;) {
		char *line = next_line();
		int event = has_key(line, "event");
		if (!quiet || event)
			puts(line);
		if (event) {
			keep_event(line);
		} else if (has_key(line, "error")) {
			if (quiet)
				puts(line);
			fflush(stdout);
			exit(1);
		} else if (has_key(line, "return")) {
			return;
		}
	}
}

static void await(const char *expression)
{
	regex_t wanted;
	if (regcomp(&wanted, expression, REG_EXTENDED | REG_NOSUB))
		leave(2, "no regular expression");
	for (int i = 0; i < event_count; i++) {
		if (!regexec(&wanted, events[i], 0, NULL, 0)) {
			free(events[i]);
			memmove(events + i, events + i + 1, (--event_count - i) * sizeof *events);
			return;
		}
	}
	for (;;) {
		char *line = next_line();
		if (!has_key(line, "event"))
			continue;
		puts(line);
		if (!regexec(&wanted, line, 0, NULL, 0))
			return;
		keep_event(line);
	}
}

int main(int argc, char **argv)
{
	if (argc < 3 || atoll(argv[2]) <= 0) {
		fprintf(stderr, "qmp: SOCKET MILLISECONDS STEP...\n");
		return 2;
	}
	end_ms = now_ms() + atoll(argv[2]);
	reach(argv[1]);
	if (!has_key(next_line(), "QMP"))
		leave(3, "what is there does not speak QMP");
	command("{\"execute\":\"qmp_capabilities\"}", 1);
	for (int i = 3; i < argc; i++) {
		if (!strncmp(argv[i], "wait:", 5))
			await(argv[i] + 5);
		else
			command(argv[i], 0);
	}
	return 0;
}
