/* load: keeps a machine busy, and looks at what it does: one process for each kind of work, for so many seconds.
 *
 *   load SECONDS MEMORY_BYTES [DISK] [--flip]
 *
 *   cpu        a sum that must come out the same each time, one process a CPU
 *   memory     MEMORY_BYTES written and read back, page by page in another order each time
 *   processes  forks one after another
 *   disk       the first MiBs of DISK written past the cache and read back; only a disk that holds nothing yet
 *
 * It says lines of KIND=COUNT: how often each was done and found right. Exit status: 0, 1 something came out wrong, 2 called wrongly or
 * refused. --flip plants one wrong bit in the memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define DISK_BYTES (4 << 20)
#define BLOCK (64 << 10)
#define KINDS 64

enum { WRONG = 1, REFUSED = 2 };

static double until;
static volatile uint64_t *done; /* shared: a counter for each process */

static double seconds(void)
{
	struct timespec time;
	clock_gettime(CLOCK_BOOTTIME, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int refused(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	return REFUSED;
}

static int wrong(const char *what, long long where)
{
	fprintf(stderr, "load: wrong %s at %lld\n", what, where);
	return WRONG;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27, x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static int cpu(volatile uint64_t *count)
{
	for (uint64_t first = 0; seconds() < until; ++*count) {
		uint64_t sum = 0;
		double series = 0;
		for (int each = 1; each <= 1 << 18; each++)
			sum += mix(each), series += 1.0 / ((double)each * each);
		sum ^= (uint64_t)(series * 1e15);
		if (first && sum != first)
			return wrong("sum", (long long)*count);
		first = sum;
	}
	return 0;
}

static int memory(volatile uint64_t *count, long long bytes, int flip)
{
	long long pages = bytes / PAGE;
	char *all = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (all == MAP_FAILED)
		return refused("memory");
	for (uint64_t round = 1; seconds() < until; round++, ++*count) {
		for (long long each = 0; each < pages && seconds() < until; each++) {
			uint64_t *page = (uint64_t *)(all + each * PAGE), had = round == 1 ? 0 : mix((round - 1) ^ (uint64_t)each << 20);
			for (int word = 0; word < PAGE / 8; word += 8) {
				if (page[word] != had)
					return wrong("memory", each * PAGE + word * 8);
				page[word] = mix(round ^ (uint64_t)each << 20);
			}
		}
		if (flip)
			*(volatile uint64_t *)(all + pages / 2 * PAGE) ^= 1;
	}
	return 0;
}

static int processes(volatile uint64_t *count)
{
	for (; seconds() < until; ++*count) {
		int status;
		pid_t child = fork();
		if (child < 0)
			return refused("fork");
		if (child == 0)
			_exit((int)(*count & 0x7f));
		if (waitpid(child, &status, 0) != child)
			return refused("waitpid");
		if (!WIFEXITED(status) || WEXITSTATUS(status) != (int)(*count & 0x7f))
			return wrong("exit status", status);
	}
	return 0;
}

static int disk(volatile uint64_t *count, const char *path)
{
	int file = open(path, O_RDWR | O_DIRECT | O_EXCL);
	uint64_t *block;
	if (file < 0)
		return refused(path);
	if (posix_memalign((void **)&block, PAGE, BLOCK))
		return refused("memory");
	for (off_t at = 0; at < DISK_BYTES; at += BLOCK) {
		if (pread(file, block, BLOCK, at) != BLOCK)
			return refused("read");
		for (int word = 0; word < BLOCK / 8; word++)
			if (block[word]) {
				fprintf(stderr, "load: %s holds something already: it is left alone\n", path);
				return 0;
			}
	}
	for (uint64_t round = 1; seconds() < until; round++, ++*count)
		for (int writing = 1; writing >= 0; writing--)
			for (off_t at = 0; at < DISK_BYTES && seconds() < until; at += BLOCK) {
				if (!writing && pread(file, block, BLOCK, at) != BLOCK)
					return refused("read");
				for (int word = 0; word < BLOCK / 8; word++) {
					uint64_t value = mix(round ^ (uint64_t)(at + word) << 16);
					if (!writing && block[word] != value)
						return wrong("disk", at + word * 8);
					block[word] = value;
				}
				if (writing && pwrite(file, block, BLOCK, at) != BLOCK)
					return refused("write");
			}
	return 0;
}

int main(int argc, char **argv)
{
	int flip = argc > 3 && !strcmp(argv[argc - 1], "--flip");
	argc -= flip;
	double length = argc >= 3 ? atof(argv[1]) : 0;
	long long bytes = argc >= 3 ? atoll(argv[2]) : 0;
	if (length <= 0 || bytes < PAGE || argc > 4) {
		fprintf(stderr, "load: SECONDS MEMORY_BYTES [DISK] [--flip]\n");
		return REFUSED;
	}
	const char *names[KINDS] = {"memory", "processes"};
	int kinds = 2, worst = 0;
	if (argc == 4)
		names[kinds++] = "disk";
	for (long cpus = sysconf(_SC_NPROCESSORS_ONLN); cpus > 0 && kinds < KINDS; cpus--)
		names[kinds++] = "cpu";
	pid_t pids[KINDS];
	done = mmap(NULL, KINDS * sizeof *done, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (done == MAP_FAILED)
		return refused("memory");
	until = seconds() + length;
	for (int kind = 0; kind < kinds; kind++) {
		pids[kind] = fork();
		if (pids[kind] < 0)
			return refused("fork");
		if (pids[kind] == 0) {
			const char *name = names[kind];
			_exit(!strcmp(name, "memory")	   ? memory(done + kind, bytes, flip)
			      : !strcmp(name, "processes") ? processes(done + kind)
			      : !strcmp(name, "disk")	   ? disk(done + kind, argv[3])
							   : cpu(done + kind));
		}
	}
	for (int kind = 0; kind < kinds; kind++) {
		int status;
		if (waitpid(pids[kind], &status, 0) != pids[kind])
			return refused("waitpid");
		int ended = WIFEXITED(status) ? WEXITSTATUS(status) : REFUSED;
		if (WIFSIGNALED(status))
			fprintf(stderr, "load: %s was killed by signal %d\n", names[kind], WTERMSIG(status));
		worst = ended == WRONG || worst == WRONG ? WRONG : ended ? ended : worst;
		printf("%s=%llu\n", names[kind], (unsigned long long)done[kind]);
	}
	return worst;
}
