/* Round trips by UDP: answers pings, or sends them and counts how long each answer took.
 *
 *   udpping serve PORT                       answers from the background; returns once it can
 *   udpping ping ADDRESS PORT COUNT [SIZE [INTERVAL_US [TIMEOUT_MS [SILENT_MS]]]]
 *
 * INTERVAL_US 0: each ping waits for the answer to the one before. Otherwise pings are sent at that interval whatever comes back, and
 * answers that overtake each other are counted. An answer later than TIMEOUT_MS is late, and its ping lost. After SILENT_MS (10 s)
 * without an answer the peer is given up. SIZE is that of the UDP payload.
 *
 * What is printed: counts, then the round trips that were not lost as a histogram of nanoseconds (`min`, `max`, `sum`, and lines
 * `bin INDEX COUNT`), whose bins are fio's: below 128 each number is one, above, each doubling is cut into 64. The last line is `end` and
 * why: `complete`, or `silent` for a peer that was given up. Status 0 for both; 2 for a mistake in the arguments, 1 for the system's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x6c616270u /* labp */
#define MOST_COUNT 1000000
#define LEAST_SIZE ((int)sizeof(struct header))
#define MOST_SIZE 65507
#define BINS 4096

struct header { uint32_t magic, run, number; };

static char packet[MOST_SIZE + 1];

static int fail(const char *what) { fprintf(stderr, "udpping: %s: %s\n", what, strerror(errno)); return 1; }

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int bin_of(uint64_t value) {
	if (value < 128)
		return (int)value;
	int shift = 63 - __builtin_clzll(value) - 6;
	return ((shift + 1) << 6) + (int)((value >> shift) & 63);
}

/* A whole number from low to high, or the end. */
static long number(const char *text, long low, long high, const char *name) {
	char *end;
	long value = strtol(text, &end, 10);
	if (*text == 0 || *end != 0 || value < low || value > high) {
		fprintf(stderr, "udpping: %s: found %s, wanted a number from %ld to %ld\n", name, text, low, high);
		exit(2);
	}
	return value;
}

static int serve(int port) {
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	if (s < 0 || bind(s, (void *)&from, sizeof from) < 0)
		return fail("bind");
	printf("serving %d\n", port);
	fflush(stdout);
	if (daemon(0, 0) < 0)
		return fail("daemon");
	for (;;) {
		socklen_t length = sizeof from;
		ssize_t got = recvfrom(s, packet, sizeof packet, 0, (void *)&from, &length);
		uint32_t magic;
		if (got < LEAST_SIZE || (memcpy(&magic, packet, sizeof magic), magic != MAGIC))
			continue; /* nobody is made to answer what is no ping */
		sendto(s, packet, (size_t)got, 0, (void *)&from, length);
	}
}

static long counts[BINS];
static int64_t *sent_at;
static unsigned char *answered; /* 1: in time, 2: late */
static long received, late, doubled, reordered, refused, foreign;
static int64_t least = INT64_MAX, most, sum;

/* One answer, or what looks like one. */
static void take(ssize_t got, int size, uint32_t run, long sent, int64_t at, int64_t timeout) {
	static long highest = -1;
	struct header h;
	if (got != size || (memcpy(&h, packet, sizeof h), h.magic != MAGIC || h.run != run || h.number >= (uint32_t)sent)) {
		foreign++;
		return;
	}
	if (answered[h.number]) {
		doubled++;
		return;
	}
	int64_t took = at - sent_at[h.number];
	answered[h.number] = 1;
	if (took > timeout) {
		answered[h.number] = 2;
		late++;
		return;
	}
	if ((long)h.number < highest)
		reordered++;
	else
		highest = h.number;
	received++;
	counts[bin_of((uint64_t)took)]++;
	sum += took;
	least = took < least ? took : least;
	most = took > most ? took : most;
}

static int ping(char **argument, int arguments) {
	struct sockaddr_in peer = {.sin_family = AF_INET};
	if (inet_aton(argument[0], &peer.sin_addr) == 0) {
		fprintf(stderr, "udpping: ADDRESS: found %s, wanted an IPv4 address\n", argument[0]);
		return 2;
	}
	peer.sin_port = htons((uint16_t)number(argument[1], 1, 65535, "PORT"));
	long count = number(argument[2], 1, MOST_COUNT, "COUNT");
	int size = arguments > 3 ? (int)number(argument[3], LEAST_SIZE, MOST_SIZE, "SIZE") : 64;
	int64_t interval = arguments > 4 ? number(argument[4], 0, 10000000, "INTERVAL_US") * 1000LL : 0;
	int64_t timeout = (arguments > 5 ? number(argument[5], 1, 60000, "TIMEOUT_MS") : 1000) * 1000000LL;
	int64_t patience = (arguments > 6 ? number(argument[6], 1, 600000, "SILENT_MS") : 10000) * 1000000LL;
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	if (s < 0 || connect(s, (void *)&peer, sizeof peer) < 0)
		return fail("connect");
	sent_at = calloc((size_t)count, sizeof *sent_at);
	answered = calloc((size_t)count, 1);
	if (!sent_at || !answered)
		return fail("memory");
	uint32_t run = (uint32_t)now() ^ (uint32_t)getpid() << 16;
	long sent = 0;
	int64_t heard = now(), next = heard;
	const char *end = "complete";
	for (;;) {
		int64_t t = now();
		if (t - heard > patience) {
			end = "silent";
			break;
		}
		int waits = sent > 0 && !answered[sent - 1] && t - sent_at[sent - 1] < timeout; /* for the last ping's answer */
		if (sent < count && (interval ? t >= next : !waits)) {
			struct header h = {MAGIC, run, (uint32_t)sent};
			memcpy(packet, &h, sizeof h);
			sent_at[sent] = now();
			if (send(s, packet, (size_t)size, 0) < 0) {
				if (errno == EAGAIN || errno == ENOBUFS || errno == ECONNREFUSED)
					refused += errno == ECONNREFUSED; /* of an earlier one: this one is lost like any other */
				else
					return fail("send");
			}
			sent++;
			next += interval;
			continue;
		}
		int64_t until;
		if (sent < count)
			until = interval ? next : sent_at[sent - 1] + timeout;
		else if (received + late >= count || t - sent_at[sent - 1] >= timeout)
			break;
		else
			until = sent_at[sent - 1] + timeout;
		struct pollfd wait = {s, POLLIN, 0};
		struct timespec left = {(until - t) / 1000000000LL, (until - t) % 1000000000LL};
		if (until <= t)
			left = (struct timespec){0, 0};
		if (ppoll(&wait, 1, &left, NULL) <= 0)
			continue;
		ssize_t got = recv(s, packet, sizeof packet, MSG_DONTWAIT);
		int64_t at = now();
		if (got < 0) {
			refused += errno == ECONNREFUSED;
			if (errno == ECONNREFUSED && !interval && sent < count)
				usleep(1000); /* a peer that is not there says so at once: it is not to be asked a million times */
			continue;
		}
		long before = received + late;
		take(got, size, run, sent, at, timeout);
		if (received + late > before)
			heard = at;
	}
	printf("udpping 1\nsent %ld\nreceived %ld\nlate %ld\ndoubled %ld\nreordered %ld\nrefused %ld\nforeign %ld\n", sent, received, late,
	       doubled, reordered, refused, foreign);
	if (received)
		printf("min %lld\nmax %lld\nsum %lld\n", (long long)least, (long long)most, (long long)sum);
	for (int i = 0; i < BINS; i++)
		if (counts[i])
			printf("bin %d %ld\n", i, counts[i]);
	printf("end %s\n", end);
	return 0;
}

int main(int argc, char **argv) {
	if (argc == 3 && strcmp(argv[1], "serve") == 0)
		return serve((int)number(argv[2], 1, 65535, "PORT"));
	if (argc >= 5 && argc <= 9 && strcmp(argv[1], "ping") == 0)
		return ping(argv + 2, argc - 2);
	fprintf(stderr, "usage: udpping serve PORT | udpping ping ADDRESS PORT COUNT [SIZE [INTERVAL_US [TIMEOUT_MS [SILENT_MS]]]]\n");
	return 2;
}
