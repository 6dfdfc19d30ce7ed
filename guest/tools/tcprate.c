/* How many bytes a second go through a TCP connection.
 *
 *   tcprate serve PORT                   takes and gives from the background; returns once it can
 *   tcprate send ADDRESS PORT MS         sends for so long; the rate holds for what the peer says it has got
 *   tcprate receive ADDRESS PORT MS      has the peer send for so long
 *
 * Whoever connects says in a line what it does: `send`, and the peer answers its end with a line of how many bytes came; or `receive MS`,
 * and the peer sends. Printed are `bytes`, `nanoseconds` and a last line `end` and why: `complete`, `refused`, `silent` (nothing moved for
 * 10 s) or `broken` (the connection). Status 0; 2 for a mistake in the arguments, 1 for the system's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_S 10
#define MOST_MS 600000

static char block[1 << 16];

static int fail(const char *what) { fprintf(stderr, "tcprate: %s: %s\n", what, strerror(errno)); return 1; }

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long number(const char *text, long low, long high, const char *name) {
	char *end;
	long value = strtol(text, &end, 10);
	if (*text == 0 || *end != 0 || value < low || value > high) {
		fprintf(stderr, "tcprate: %s: found %s, wanted a number from %ld to %ld\n", name, text, low, high);
		exit(2);
	}
	return value;
}

/* A line of at most 63 characters, without its end; 0 if there is none. */
static int line(int s, char *text) {
	for (int i = 0; i < 63; i++) {
		if (read(s, text + i, 1) != 1)
			return 0;
		if (text[i] == '\n') {
			text[i] = 0;
			return 1;
		}
	}
	return 0;
}

static int patient(int s) {
	struct timeval patience = {PATIENCE_S, 0};
	return setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) |
	       setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

/* Until the end of what comes: how much it was. What is wrong with it is in errno, which else is 0. */
static long long drain(int s, int64_t *first) {
	long long total = 0;
	ssize_t got;
	errno = 0;
	while ((got = read(s, block, sizeof block)) > 0) {
		if (!total && first)
			*first = now();
		total += got;
	}
	return total;
}

static long long fill(int s, long ms) {
	long long total = 0;
	ssize_t put;
	errno = 0;
	for (int64_t until = now() + ms * 1000000LL; now() < until; total += put)
		if ((put = write(s, block, sizeof block)) < 0)
			break;
	return total;
}

static void answer(int s) {
	char said[64];
	long ms;
	patient(s);
	if (!line(s, said))
		return;
	if (strcmp(said, "send") == 0)
		dprintf(s, "%lld\n", drain(s, NULL));
	else if (sscanf(said, "receive %ld", &ms) == 1 && ms > 0 && ms <= MOST_MS)
		fill(s, ms);
}

static int serve(int port) {
	int s = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (s < 0 || bind(s, (void *)&here, sizeof here) < 0 || listen(s, 4) < 0)
		return fail("bind");
	printf("serving %d\n", port);
	fflush(stdout);
	if (daemon(0, 0) < 0)
		return fail("daemon");
	for (;;) {
		int client = accept(s, NULL, NULL);
		if (client < 0)
			continue;
		answer(client);
		close(client);
	}
}

static int ended(long long bytes, int64_t took, const char *end) {
	printf("tcprate 1\nbytes %lld\nnanoseconds %lld\nend %s\n", bytes, (long long)took, end);
	return 0;
}

static const char *reason(int error) {
	return error == EAGAIN || error == EINPROGRESS || error == ETIMEDOUT ? "silent" : error == ECONNREFUSED ? "refused" : "broken";
}

static int measure(int sends, char **argument) {
	struct sockaddr_in peer = {.sin_family = AF_INET};
	if (inet_aton(argument[0], &peer.sin_addr) == 0) {
		fprintf(stderr, "tcprate: ADDRESS: found %s, wanted an IPv4 address\n", argument[0]);
		return 2;
	}
	peer.sin_port = htons((uint16_t)number(argument[1], 1, 65535, "PORT"));
	long ms = number(argument[2], 1, MOST_MS, "MS");
	int s = socket(AF_INET, SOCK_STREAM, 0);
	if (s < 0 || patient(s) < 0)
		return fail("socket");
	if (connect(s, (void *)&peer, sizeof peer) < 0)
		return ended(0, 0, reason(errno));
	int64_t first = now();
	if (sends) {
		char said[64];
		dprintf(s, "send\n");
		long long put = fill(s, ms);
		if (errno)
			return ended(put, now() - first, reason(errno));
		shutdown(s, SHUT_WR);
		errno = 0;
		if (!line(s, said) || atoll(said) != put)
			return ended(put, now() - first, errno ? reason(errno) : "broken");
		return ended(put, now() - first, "complete");
	}
	dprintf(s, "receive %ld\n", ms);
	long long got = drain(s, &first);
	const char *end = errno ? reason(errno) : now() - first >= ms * 900000LL ? "complete" : "broken"; /* a peer that dies in order */
	return ended(got, now() - first, end);
}

int main(int argc, char **argv) {
	signal(SIGPIPE, SIG_IGN);
	if (argc == 3 && strcmp(argv[1], "serve") == 0)
		return serve((int)number(argv[2], 1, 65535, "PORT"));
	if (argc == 5 && (strcmp(argv[1], "send") == 0 || strcmp(argv[1], "receive") == 0))
		return measure(argv[1][0] == 's', argv + 2);
	fprintf(stderr, "usage: tcprate serve PORT | tcprate send ADDRESS PORT MS | tcprate receive ADDRESS PORT MS\n");
	return 2;
}
