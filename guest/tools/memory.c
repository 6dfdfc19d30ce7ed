/* memory: what the suite of that name does inside the machine. Static, one file, no library but libc.
 *
 *   memory patterns BYTES [--huge] [--flip]   write patterns to that much memory, read them back
 *   memory greedy                             take memory until the kernel says no; it is expected not to survive
 *   memory lives COUNT [--leak BYTES]         that many processes, one after another, each with memory, a pipe and a file of its own
 *
 * It says lines of KEY=VALUE. Exit status: 0 done, 1 the memory is not what was written, 2 called wrongly or refused by the kernel.
 * --flip and --leak plant what the suite must find: one wrong bit, and memory that outlives its process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WARM_UP 200 /* lives before the first count: caches of the kernel's grow to their size */
#define LIFE_BYTES (256 << 10)

static int refused(const char *what)
{
	fprintf(stderr, "memory: %s: %s\n", what, strerror(errno));
	return 2;
}

static long long number(const char *text)
{
	char *end;
	errno = 0;
	long long value = strtoll(text, &end, 10);
	if (errno || end == text || *end || value <= 0) {
		fprintf(stderr, "memory: %s is not a number above 0\n", text);
		exit(2);
	}
	return value;
}

/* --- patterns */

/* Each cell's own place in a scrambled form: a word that lands elsewhere, or a bit that sticks, is wrong. */
static uint64_t own(uint64_t cell) { return cell * 0x9e3779b97f4a7c15ull ^ cell >> 7; }
static uint64_t inverse(uint64_t cell) { return ~own(cell); }
static uint64_t stripes(uint64_t cell) { return cell & 1 ? 0x5555555555555555ull : 0xaaaaaaaaaaaaaaaaull; }

static const struct {
	const char *name;
	uint64_t (*value)(uint64_t cell);
} PATTERNS[] = {{"own", own}, {"inverse", inverse}, {"stripes", stripes}};

static int patterns(long long bytes, int huge, int flip)
{
	long long cells = bytes / 8, bad = 0;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | (huge ? MAP_HUGETLB : 0);
	volatile uint64_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (memory == MAP_FAILED)
		return refused("mmap");
	for (unsigned pattern = 0; pattern < sizeof PATTERNS / sizeof *PATTERNS; pattern++) {
		long long wrong = 0, first = -1;
		for (long long cell = 0; cell < cells; cell++)
			memory[cell] = PATTERNS[pattern].value(cell);
		if (flip)
			memory[cells / 2] ^= 1ull << 42;
		for (long long cell = 0; cell < cells; cell++)
			if (memory[cell] != PATTERNS[pattern].value(cell) && !wrong++)
				first = cell * 8;
		printf("pattern=%s bytes=%lld wrong=%lld first=%lld\n", PATTERNS[pattern].name, cells * 8, wrong, first);
		fflush(stdout);
		bad += wrong;
	}
	return bad > 0;
}

/* --- greedy */

static int greedy(void)
{
	for (long long taken = 0;;) {
		char *piece = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (piece == MAP_FAILED) {
			printf("taken=%lld\n", taken);
			return refused("mmap");
		}
		memset(piece, 0xa5, 4 << 20);
		taken += 4 << 20;
	}
}

/* --- lives */

static int life(const char *leak)
{
	char *memory = mmap(NULL, LIFE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int ends[2], file = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	if (memory == MAP_FAILED || pipe(ends) || file < 0)
		return refused("a process's own things");
	memset(memory, 1, LIFE_BYTES);
	if (write(ends[1], memory, 4096) != 4096 || write(file, memory, 4096) != 4096)
		return refused("write");
	if (leak) {
		char name[64];
		snprintf(name, sizeof name, "/tmp/leak-%d", (int)getpid());
		int left = open(name, O_CREAT | O_WRONLY, 0600);
		if (left < 0 || fallocate(left, 0, 0, number(leak)))
			return refused(name);
	}
	return 0;
}

/* The other half of them becomes another program, as most processes do. */
static int live(long long count, const char *leak)
{
	for (long long each = 0; each < count; each++) {
		pid_t child = fork();
		if (child < 0)
			return refused("fork");
		if (child == 0) {
			if (each & 1)
				execl("/proc/self/exe", "memory", "life", leak, (char *)NULL);
			_exit(life(leak));
		}
		int status;
		if (waitpid(child, &status, 0) != child)
			return refused("waitpid");
		if (status) {
			fprintf(stderr, "memory: life %lld ended with status %#x\n", each, status);
			return 2;
		}
	}
	return 0;
}

static long long meminfo(const char *key)
{
	static char text[8192];
	int file = open("/proc/meminfo", O_RDONLY);
	ssize_t got = file < 0 ? -1 : read(file, text, sizeof text - 1);
	if (file >= 0)
		close(file);
	text[got > 0 ? got : 0] = 0;
	char *found = strstr(text, key);
	return found ? atoll(found + strlen(key)) : -1;
}

/* KiB on the lists of free pages that each CPU has of each zone. */
static long long kept_by_cpus(void)
{
	FILE *file = fopen("/proc/zoneinfo", "r");
	char line[256];
	long long pages = 0, count;
	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, " count: %lld", &count) == 1)
			pages += count;
	if (file)
		fclose(file);
	return pages * (sysconf(_SC_PAGESIZE) >> 10);
}

static void count_memory(const char *when)
{
	int file = open("/proc/sys/vm/drop_caches", O_WRONLY);
	sync();
	if (file >= 0) {
		if (write(file, "3", 1) < 0)
			refused("drop_caches");
		close(file);
	}
	usleep(200000); /* what is freed by RCU and by work queues comes a little later */
	/* Pages that a CPU keeps in a list of its own, some MiB of them, are free, but the kernel does not count them as that. */
	long long kept = kept_by_cpus();
	printf("when=%s available=%lld kept_by_cpus=%lld slab=%lld unreclaimable=%lld stacks=%lld tables=%lld\n", when,
	       meminfo("MemAvailable:") + kept, kept, meminfo("Slab:"), meminfo("SUnreclaim:"), meminfo("KernelStack:"), meminfo("PageTables:"));
	fflush(stdout);
}

static int lives(long long count, const char *leak)
{
	int status = live(WARM_UP, NULL);
	if (status)
		return status;
	count_memory("before");
	if ((status = live(count, leak)))
		return status;
	count_memory("after");
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	if (!strcmp(mode, "patterns") && argc >= 3) {
		int huge = 0, flip = 0;
		for (int each = 3; each < argc; each++) {
			huge |= !strcmp(argv[each], "--huge");
			flip |= !strcmp(argv[each], "--flip");
		}
		return patterns(number(argv[2]), huge, flip);
	}
	if (!strcmp(mode, "greedy"))
		return greedy();
	if (!strcmp(mode, "lives") && (argc == 3 || (argc == 5 && !strcmp(argv[3], "--leak"))))
		return lives(number(argv[2]), argc == 5 ? argv[4] : NULL);
	if (!strcmp(mode, "life"))
		return life(argc > 2 ? argv[2] : NULL);
	fprintf(stderr, "memory: patterns BYTES [--huge] [--flip] | greedy | lives COUNT [--leak BYTES]\n");
	return 2;
}
