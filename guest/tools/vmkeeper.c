/* vmkeeper: keeps one VM of this machine: starts its program, takes down what its console says and when, starts it again when it dies.
 *
 *   vmkeeper start FOLDER RESTARTS -- PROGRAM WORD...   until the program runs; its keeper stays behind, in the background
 *   vmkeeper status FOLDER...             a line each: FOLDER KEY=VALUE...; `state=gone` where there is no keeper, `state=lost` where one has
 *                                         died, and with it the program: its socket is there, and nobody listens
 *   vmkeeper read FOLDER OFFSET           what the console said from that byte on, behind a line `from=OFFSET to=OFFSET dropped=BYTES`
 *   vmkeeper wait FOLDER OFFSET MS TEXT   until the console says TEXT in or after that byte: `at=OFFSET ns=TIME`, OFFSET behind it
 *   vmkeeper lines FOLDER OFFSET PREFIX   whole lines that begin so: `OFFSET NS LINE`, the time at which its end arrived
 *   vmkeeper type FOLDER HEX              bytes to the console
 *   vmkeeper said FOLDER                  the last that the program said on its standard error
 *   vmkeeper end FOLDER                   kills the program and does not start it again; returns when both are gone. Of a keeper that has
 *                                         died nothing is left either
 *   vmkeeper clock                        `monotonic=NS realtime=NS`
 *   vmkeeper audit FILE WHO VERB VM RESULT   one more line of JSON at the end of FILE
 *
 * A word `{console}` in the program's words becomes the number of a descriptor, a stream socket that is the VM's console; without one the
 * console is the program's standard input and output. Times are CLOCK_MONOTONIC's in ns. Of a console that says a lot the last MOST bytes
 * are kept: offsets go on counting. RESTARTS: how often it is started again when it ends
 * by itself and its status is not 0.
 *
 * Exit status: 0; 1 no (the text did not come, the program ended: the line printed says `late` or `ended`); 2 called wrongly; 3 no keeper;
 * 5 the keeper has died.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST (1 << 20)		/* bytes of a console that are kept */
#define STAMPS (1 << 13)	/* arrivals whose time is kept */
#define CLIENTS 16
#define MOST_TEXT 256
#define MOST_SAID 4096
#define REQUEST (MOST_TEXT * 4)
#define LOST 5 /* status: its keeper has died */

static int64_t now_ns(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static int failed(int status, const char *what)
{
	fprintf(stderr, "vmkeeper: %s\n", what);
	return status;
}

/* --- the console --------------------------------------------------------------------------------------------------- */

static char console[MOST]; /* the byte at offset O lies at O % MOST */
static uint64_t said_to;   /* offset behind the last byte */
static struct {
	uint64_t to;
	int64_t ns;
} stamps[STAMPS];
static uint64_t stamped; /* number of arrivals so far */

static uint64_t oldest(void)
{
	return said_to > MOST ? said_to - MOST : 0;
}

static void take_down(const char *data, size_t length)
{
	for (size_t i = 0; i < length; i++)
		console[(said_to + i) % MOST] = data[i];
	said_to += length;
	stamps[stamped % STAMPS].to = said_to;
	stamps[stamped % STAMPS].ns = now_ns(CLOCK_MONOTONIC);
	stamped++;
}

/* When the byte before an offset arrived; of bytes that are too old the oldest time that is known. */
static int64_t arrived(uint64_t to)
{
	uint64_t low = stamped > STAMPS ? stamped - STAMPS : 0, high = stamped;
	while (low < high) {
		uint64_t middle = (low + high) / 2;
		if (stamps[middle % STAMPS].to < to)
			low = middle + 1;
		else
			high = middle;
	}
	return stamps[low % STAMPS].ns;
}

/* Offset behind the first TEXT that begins at or after an offset; 0 if it is not there, and then `from` is where to look next. */
static uint64_t find(uint64_t *from, const char *text)
{
	size_t length = strlen(text);
	if (*from < oldest())
		*from = oldest();
	for (; *from + length <= said_to; (*from)++) {
		size_t i = 0;
		while (i < length && console[(*from + i) % MOST] == text[i])
			i++;
		if (i == length)
			return *from + length;
	}
	return 0;
}

/* --- the program --------------------------------------------------------------------------------------------------- */

static char **program;
static char *console_word; /* where the descriptor's number belongs */
static int console_at = -1;
static int child_console = -1, child_said = -1;
static pid_t child, last; /* last: the child, also once that has ended */
static int64_t started_ns, ended_ns, first_ns; /* first_ns: the first byte after the last start */
static int starts, restarts_left, ended_how, ending;
static char said[MOST_SAID];
static size_t said_length;

static int spawn(void)
{
	int pair[2], voice[2], tells[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) || pipe2(voice, O_CLOEXEC) || pipe2(tells, O_CLOEXEC))
		return errno;
	char number[16];
	started_ns = now_ns(CLOCK_MONOTONIC);
	first_ns = 0;
	child = fork();
	if (child < 0)
		return errno;
	if (!child) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
		if (adjust < 0 || write(adjust, "0", 1) != 1)
			dprintf(voice[1], "vmkeeper: oom_score_adj stays\n");
		/* Held until the last process of the program is gone, whatever becomes of its keeper. */
		int alive = open("alive", O_RDWR | O_CREAT, 0600);
		if (alive < 0 || flock(alive, LOCK_SH))
			dprintf(voice[1], "vmkeeper: alive: %s\n", strerror(errno));
		int nothing = open("/dev/null", O_RDWR);
		dup2(console_at < 0 ? pair[1] : nothing, 0);
		dup2(console_at < 0 ? pair[1] : voice[1], 1);
		dup2(voice[1], 2);
		if (console_at >= 0) {
			int given = fcntl(pair[1], F_DUPFD, 10);
			char *word;
			snprintf(number, sizeof number, "%d", given);
			if (asprintf(&word, "%.*s%s%s", (int)(console_word - program[console_at]), program[console_at], number,
				     console_word + strlen("{console}")) < 0)
				_exit(127);
			program[console_at] = word;
		}
		execvp(program[0], program);
		int why = errno;
		if (write(tells[1], &why, sizeof why) != sizeof why)
			_exit(126);
		_exit(127);
	}
	close(pair[1]);
	close(voice[1]);
	close(tells[1]);
	int why = 0;
	if (read(tells[0], &why, sizeof why) != sizeof why)
		why = 0;
	close(tells[0]);
	last = child;
	child_console = pair[0];
	child_said = voice[0];
	fcntl(child_console, F_SETFL, O_NONBLOCK);
	fcntl(child_said, F_SETFL, O_NONBLOCK);
	starts++;
	return why;
}

static void hear(void)
{
	char data[1 << 14];
	ssize_t got;
	for (int rounds = 0; child_console >= 0 && rounds < 16; rounds++) {
		if ((got = read(child_console, data, sizeof data)) <= 0) {
			if (!got || errno != EAGAIN) {
				close(child_console);
				child_console = -1;
			}
			break;
		}
		take_down(data, got);
		if (!first_ns)
			first_ns = stamps[(stamped - 1) % STAMPS].ns;
	}
	while (child_said >= 0) {
		if ((got = read(child_said, data, sizeof data)) <= 0) {
			if (!got || errno != EAGAIN) {
				close(child_said);
				child_said = -1;
			}
			break;
		}
		size_t length = got > MOST_SAID ? MOST_SAID : (size_t)got, keep = MOST_SAID - length;
		if (said_length > keep) {
			memmove(said, said + said_length - keep, keep);
			said_length = keep;
		}
		memcpy(said + said_length, data + got - length, length);
		said_length += length;
	}
}

/* --- who asks ------------------------------------------------------------------------------------------------------ */

static struct client {
	int fd;
	int waits; /* for a text, or for the end */
	uint64_t from;
	int64_t until_ns;
	int starts; /* of the program, when it asked */
	char text[MOST_TEXT + 1];
} clients[CLIENTS];

static void answer(struct client *client, const char *data, size_t length)
{
	/* Blocking, but for a second at the most: whoever asks reads. */
	struct timeval most = {.tv_sec = 1};
	setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most);
	while (length) {
		ssize_t put = send(client->fd, data, length, MSG_NOSIGNAL);
		if (put <= 0)
			break;
		data += put;
		length -= put;
	}
}

static void release(struct client *client)
{
	close(client->fd);
	client->fd = -1;
	client->waits = 0;
}

static void tell(struct client *client, int status, const char *line)
{
	char text[512];
	answer(client, text, snprintf(text, sizeof text, "%d\n%s\n", status, line));
	release(client);
}

static void tell_status(struct client *client)
{
	char line[400];
	snprintf(line, sizeof line, "state=%s pid=%d started_ns=%lld first_ns=%lld ended_ns=%lld ended=%d starts=%d console=%llu keeper=%d",
		 child ? "running" : "ended", last, (long long)started_ns, (long long)first_ns, (long long)ended_ns, ended_how, starts,
		 (unsigned long long)said_to, getpid());
	tell(client, 0, line);
}

static void tell_read(struct client *client, uint64_t from)
{
	char line[128];
	uint64_t dropped = from < oldest() ? oldest() - from : 0;
	from += dropped;
	if (from > said_to)
		from = said_to;
	answer(client, line, snprintf(line, sizeof line, "0\nfrom=%llu to=%llu dropped=%llu\n", (unsigned long long)from,
				      (unsigned long long)said_to, (unsigned long long)dropped));
	while (from < said_to) {
		size_t at = from % MOST, length = said_to - from;
		if (length > MOST - at)
			length = MOST - at;
		answer(client, console + at, length);
		from += length;
	}
	release(client);
}

static void tell_lines(struct client *client, uint64_t from, const char *prefix)
{
	char line[MOST_TEXT * 2], text[sizeof line + 64];
	size_t length = 0;
	int over = 0;
	answer(client, "0\n", 2);
	if (from < oldest())
		from = oldest();
	for (; from < said_to; from++) {
		char byte = console[from % MOST];
		if (byte == '\n') {
			line[length] = 0;
			if (!over && !strncmp(line, prefix, strlen(prefix)))
				answer(client, text, snprintf(text, sizeof text, "%llu %lld %s\n", (unsigned long long)from + 1,
							      (long long)arrived(from + 1), line));
			length = over = 0;
		} else if (byte != '\r') {
			if (length == sizeof line - 1)
				over = 1;
			else
				line[length++] = byte;
		}
	}
	release(client);
}

static void type(struct client *client, const char *hex)
{
	char data[REQUEST];
	size_t length = 0;
	unsigned byte;
	for (; sscanf(hex, "%2x", &byte) == 1 && hex[1]; hex += 2)
		data[length++] = byte;
	if (*hex)
		tell(client, 2, "no bytes in hex");
	else if (child_console < 0)
		tell(client, 1, "ended");
	else if (send(child_console, data, length, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)length)
		tell(client, 0, "typed");
	else
		tell(client, 1, "full");
}

static void look(struct client *client)
{
	char line[128];
	uint64_t found;
	if (client->waits != 't')
		return;
	if ((found = find(&client->from, client->text))) {
		snprintf(line, sizeof line, "at=%llu ns=%lld", (unsigned long long)found, (long long)arrived(found));
		tell(client, 0, line);
	} else if (!child) {
		tell(client, 1, "ended");
	} else if (now_ns(CLOCK_MONOTONIC) >= client->until_ns) {
		tell(client, 1, "late");
	}
}

static void ask(struct client *client)
{
	char request[REQUEST + 64], *word[4] = {0}, *rest = request;
	ssize_t got = recv(client->fd, request, sizeof request - 1, 0);
	if (got <= 0) {
		release(client);
		return;
	}
	request[got] = 0;
	request[strcspn(request, "\n")] = 0;
	for (int i = 0; i < 3 && rest; i++)
		word[i] = strsep(&rest, " ");
	word[3] = rest;
	if (!strcmp(word[0], "status")) {
		tell_status(client);
	} else if (!strcmp(word[0], "said")) {
		answer(client, "0\n", 2);
		answer(client, said, said_length);
		release(client);
	} else if (!strcmp(word[0], "read") && word[1]) {
		tell_read(client, strtoull(word[1], NULL, 10));
	} else if (!strcmp(word[0], "lines") && word[1]) {
		char prefix[MOST_TEXT];
		snprintf(prefix, sizeof prefix, "%s%s%s", word[2] ? word[2] : "", word[3] ? " " : "", word[3] ? word[3] : "");
		tell_lines(client, strtoull(word[1], NULL, 10), prefix);
	} else if (!strcmp(word[0], "type") && word[1]) {
		type(client, word[1]);
	} else if (!strcmp(word[0], "wait") && word[3] && strlen(word[3]) <= MOST_TEXT && *word[3]) {
		client->waits = 't';
		client->from = strtoull(word[1], NULL, 10);
		client->until_ns = now_ns(CLOCK_MONOTONIC) + strtoll(word[2], NULL, 10) * 1000000;
		strcpy(client->text, word[3]);
		look(client);
	} else if (!strcmp(word[0], "end")) {
		client->waits = 'e';
		ending = 1;
		if (child)
			kill(child, SIGKILL);
	} else {
		tell(client, 2, "what is that?");
	}
}

/* --- the keeper ---------------------------------------------------------------------------------------------------- */

static void reap(void)
{
	int status;
	if (!child || waitpid(child, &status, WNOHANG) != child)
		return;
	hear(); /* what it said last */
	ended_ns = now_ns(CLOCK_MONOTONIC);
	ended_how = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	child = 0;
	if (child_console >= 0)
		close(child_console);
	if (child_said >= 0)
		close(child_said);
	child_console = child_said = -1;
	if (!ending && ended_how && restarts_left > 0) {
		restarts_left--;
		if (spawn())
			child = 0;
	}
}

static int address_of(const char *folder, struct sockaddr_un *address)
{
	address->sun_family = AF_UNIX;
	return snprintf(address->sun_path, sizeof address->sun_path, "%s/keeper", folder) < (int)sizeof address->sun_path;
}

static void keep(int listener, int signals)
{
	for (;;) {
		struct pollfd polled[CLIENTS + 4] = {
			{.fd = listener, .events = POLLIN}, {.fd = signals, .events = POLLIN}, {.fd = child_console, .events = POLLIN},
			{.fd = child_said, .events = POLLIN}};
		int64_t next_ns = -1, now = now_ns(CLOCK_MONOTONIC);
		int free_slot = -1;
		for (int i = 0; i < CLIENTS; i++) {
			polled[i + 4].fd = clients[i].fd;
			polled[i + 4].events = POLLIN;
			if (clients[i].fd < 0)
				free_slot = i;
			else if (clients[i].waits == 't' && (next_ns < 0 || clients[i].until_ns < next_ns))
				next_ns = clients[i].until_ns;
		}
		if (free_slot < 0)
			polled[0].fd = -1;
		poll(polled, CLIENTS + 4, next_ns < 0 ? -1 : next_ns <= now ? 0 : (int)((next_ns - now) / 1000000 + 1));
		struct signalfd_siginfo info;
		if (polled[1].revents && read(signals, &info, sizeof info) != sizeof info)
			continue;
		hear();
		reap();
		if (polled[0].revents & POLLIN) {
			int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
			if (fd >= 0)
				clients[free_slot] = (struct client){.fd = fd};
		}
		for (int i = 0; i < CLIENTS; i++) {
			if (clients[i].fd < 0)
				continue;
			if (polled[i + 4].fd == clients[i].fd && polled[i + 4].revents) {
				if (clients[i].waits)
					release(&clients[i]); /* it has gone */
				else
					ask(&clients[i]);
			}
			look(&clients[i]);
		}
		if (ending && !child) {
			unlink("keeper");
			for (int i = 0; i < CLIENTS; i++)
				if (clients[i].fd >= 0 && clients[i].waits == 'e')
					tell(&clients[i], 0, "gone");
			exit(0);
		}
	}
}

static int start(const char *folder, const char *restarts, char **words)
{
	struct sockaddr_un address;
	program = words;
	restarts_left = atoi(restarts);
	for (int i = 0; words[i]; i++) {
		if ((console_word = strstr(words[i], "{console}"))) {
			console_at = i;
			break;
		}
	}
	if (!address_of(folder, &address))
		return failed(2, "the folder's path is too long");
	if (chdir(folder))
		return failed(2, strerror(errno));
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), tells[2];
	strcpy(address.sun_path, "keeper");
	int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!connect(probe, (struct sockaddr *)&address, sizeof address))
		return failed(2, "it is kept already");
	close(probe);
	unlink("keeper");
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, CLIENTS) || pipe2(tells, O_CLOEXEC))
		return failed(2, strerror(errno));
	pid_t keeper = fork();
	if (keeper < 0)
		return failed(2, strerror(errno));
	if (keeper) {
		char why[256];
		close(tells[1]);
		ssize_t got = read(tells[0], why, sizeof why - 1);
		if (got <= 0)
			return failed(3, "the keeper has died");
		why[got] = 0;
		return strcmp(why, "ok") ? failed(1, why) : 0;
	}
	setsid();
	int nothing = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		dup2(nothing, fd);
	int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (adjust >= 0 && write(adjust, "-1000", 5) == 5)
		close(adjust);
	for (int i = 0; i < CLIENTS; i++)
		clients[i].fd = -1;
	sigset_t children;
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	int signals = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
	int why = spawn();
	if (why) {
		dprintf(tells[1], "%s: %s", program[0], strerror(why));
		unlink("keeper");
		return 1;
	}
	if (write(tells[1], "ok", 2) != 2)
		return 1;
	close(tells[1]);
	keep(listener, signals);
	return 0;
}

/* Nobody answers: 3, or LOST if a keeper has left its socket behind, as only one does that was killed. Its program was killed with it: the
 * end is when that is gone too. */
static int nobody(const char *folder, const char *listener, const char *asked)
{
	char path[256];
	if (access(listener, F_OK))
		return 3;
	if (!strcmp(asked, "end\n")) {
		snprintf(path, sizeof path, "%s/alive", folder);
		int alive = open(path, O_RDWR | O_CLOEXEC);
		while (alive >= 0 && flock(alive, LOCK_EX) && errno == EINTR)
			;
		close(alive);
		unlink(listener);
	}
	return LOST;
}

/* One request to a keeper; what it answers behind its status goes to standard output. */
static int request(const char *folder, const char *line, const char *before)
{
	struct sockaddr_un address;
	char data[1 << 14];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), status = 0, begun = 0;
	ssize_t got;
	if (!address_of(folder, &address))
		return failed(2, "the folder's path is too long");
	if (connect(fd, (struct sockaddr *)&address, sizeof address) || send(fd, line, strlen(line), MSG_NOSIGNAL) < 0) {
		close(fd);
		return nobody(folder, address.sun_path, line);
	}
	while ((got = read(fd, data, sizeof data)) > 0) {
		char *from = data;
		if (!begun && got >= 2) {
			status = data[0] - '0';
			from += 2;
			begun = 1;
			fputs(before, stdout);
		}
		fwrite(from, 1, data + got - from, stdout);
	}
	close(fd);
	return begun ? status : nobody(folder, address.sun_path, line);
}

static void json(FILE *to, const char *text)
{
	fputc('"', to);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			fprintf(to, "\\%c", *text);
		else if ((unsigned char)*text < 0x20 || *text == 0x7f)
			fprintf(to, "\\u%04x", *text);
		else
			fputc(*text, to);
	}
	fputc('"', to);
}

/* The line is one write behind the end, so that lines of several writers do not mix. */
static int audit(char **word)
{
	static const char *keys[] = {"who", "verb", "vm", "result"};
	char *line;
	size_t length;
	FILE *text = open_memstream(&line, &length);
	int64_t at = now_ns(CLOCK_REALTIME);
	fprintf(text, "{\"at\":%lld.%06lld", (long long)(at / 1000000000), (long long)(at / 1000 % 1000000));
	for (int i = 0; i < 4; i++) {
		fprintf(text, ",\"%s\":", keys[i]);
		json(text, word[i + 1]);
	}
	fputs("}\n", text);
	fclose(text);
	char *end = strrchr(word[0], '/'); /* its folder is there from the first line on */
	if (end && end != word[0]) {
		*end = 0;
		mkdir(word[0], 0755);
		*end = '/';
	}
	int file = open(word[0], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
	if (file < 0 || write(file, line, length) != (ssize_t)length)
		return failed(2, strerror(errno));
	return 0;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";
	char line[REQUEST];
	if (!strcmp(verb, "start") && argc > 5 && !strcmp(argv[4], "--"))
		return start(argv[2], argv[3], argv + 5);
	if (!strcmp(verb, "audit") && argc == 7)
		return audit(argv + 2);
	if (!strcmp(verb, "clock"))
		return printf("monotonic=%lld realtime=%lld\n", (long long)now_ns(CLOCK_MONOTONIC), (long long)now_ns(CLOCK_REALTIME)) < 0;
	if (!strcmp(verb, "status") && argc > 2) {
		for (int i = 2; i < argc; i++) {
			char before[200];
			snprintf(before, sizeof before, "%s ", argv[i]);
			int answered = request(argv[i], "status\n", before);
			if (answered)
				printf("%sstate=%s\n", before, answered == LOST ? "lost" : "gone");
		}
		return 0;
	}
	if (argc < 3 || !strstr(" read wait lines type said end ", verb) || strchr(verb, ' '))
		return failed(2, "start | status | read | wait | lines | type | said | end | clock | audit: see its source");
	size_t length = snprintf(line, sizeof line, "%s", verb);
	for (int i = 3; i < argc && length < sizeof line; i++)
		length += snprintf(line + length, sizeof line - length, " %s", argv[i]);
	if (length >= sizeof line - 1)
		return failed(2, "too long");
	strcpy(line + length, "\n");
	return request(argv[2], line, "");
}
