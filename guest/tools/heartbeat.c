/* heartbeat: says now and then that the machine lives, by a timer of its own, on the console and in the kernel's log.
 *
 *   heartbeat SECONDS SAY_MS [--stop-after SECONDS]
 *
 * It wakes every 100 ms, and every SAY_MS writes a line to /dev/kmsg (see printk_devkmsg: the limit on it is lifted), so that each one is
 * on the console, whole and with the kernel's time, at the moment when it is said: what a machine said before it died is not lost with it.
 *
 *   heartbeat: NUMBER up=SECONDS gap=SECONDS missed=COUNT      gap: the longest pause between two beats since the line before
 *   heartbeat: end up=SECONDS gap=SECONDS missed=COUNT beats=COUNT     of the whole
 *
 * Times are CLOCK_BOOTTIME's, which a machine that is suspended does not stop; up is since the first beat. A beat is missed when the next
 * one after it is due. --stop-after plants a program that is stopped for good. Exit status: 0, or 2 called wrongly or refused.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define BEAT_NS 100000000ll
#define SECOND_NS 1000000000ll

static int log_file;

static int refused(const char *what)
{
	fprintf(stderr, "heartbeat: %s: %s\n", what, strerror(errno));
	return 2;
}

static int64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_BOOTTIME, &time);
	return time.tv_sec * SECOND_NS + time.tv_nsec;
}

/* One write is one record; <4> is above the level that a quiet console shows. */
static int say(const char *which, int64_t up, int64_t gap, uint64_t missed, const char *more)
{
	char line[200];
	int length = snprintf(line, sizeof line, "<4>heartbeat: %s up=%.3f gap=%.3f missed=%llu%s\n", which, up / 1e9, gap / 1e9,
			      (unsigned long long)missed, more);
	return write(log_file, line, length) == length ? 0 : refused("/dev/kmsg");
}

int main(int argc, char **argv)
{
	double seconds = argc >= 3 ? atof(argv[1]) : 0, stop = argc == 5 ? atof(argv[4]) : 0;
	int64_t say_ns = argc >= 3 ? atoll(argv[2]) * 1000000 : 0;
	if (seconds <= 0 || say_ns < BEAT_NS || (argc != 3 && (argc != 5 || strcmp(argv[3], "--stop-after")))) {
		fprintf(stderr, "heartbeat: SECONDS SAY_MS [--stop-after SECONDS]\n");
		return 2;
	}
	int limit = open("/proc/sys/kernel/printk_devkmsg", O_WRONLY);
	if (limit < 0 || write(limit, "on\n", 3) != 3)
		return refused("printk_devkmsg");
	close(limit);
	if ((log_file = open("/dev/kmsg", O_WRONLY)) < 0)
		return refused("/dev/kmsg");
	struct itimerspec every = {.it_interval = {.tv_nsec = BEAT_NS}, .it_value = {.tv_nsec = BEAT_NS}};
	int timer = timerfd_create(CLOCK_BOOTTIME, 0);
	if (timer < 0 || timerfd_settime(timer, 0, &every, NULL))
		return refused("timer");
	int64_t began = now(), last = began, said = began, gap = 0, worst = 0;
	uint64_t missed = 0, all_missed = 0, beats = 0, lines = 0;
	if (say("0", 0, 0, 0, ""))
		return 2;
	while (last - began < seconds * SECOND_NS) {
		uint64_t due; /* how often the timer went off since it was asked */
		if (read(timer, &due, sizeof due) != sizeof due)
			return refused("timer");
		int64_t at = now();
		if (at - last > gap)
			gap = at - last;
		missed += due - 1;
		last = at;
		beats++;
		if (stop > 0 && at - began > stop * SECOND_NS)
			raise(SIGSTOP);
		if (at - said >= say_ns - BEAT_NS / 2) {
			char number[24];
			snprintf(number, sizeof number, "%llu", (unsigned long long)++lines);
			if (say(number, at - began, gap, missed, ""))
				return 2;
			if (gap > worst)
				worst = gap;
			all_missed += missed;
			said = at;
			gap = missed = 0;
		}
	}
	if (gap > worst)
		worst = gap;
	char more[40];
	snprintf(more, sizeof more, " beats=%llu", (unsigned long long)beats);
	return say("end", last - began, worst, all_missed + missed, more);
}
