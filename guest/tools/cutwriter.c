/* Writes what a power cut must not take, and says what that is.
 *
 *     cutwriter write FOLDER MOST    writes numbered blocks until there are MOST, then waits to be cut
 *     cutwriter check FOLDER COUNT   are the blocks 0 to COUNT-1 there, as they were written? Status 1 if not
 *
 * A block is 4 KiB that follow from its number, with a checksum. Blocks are appended, 64 to a file; a file has a name of its own while it
 * grows and is renamed when it is full. Beside them, the file `ring` has 64 sectors that are overwritten in turn: sector n % 64 holds n.
 * So a cut meets data, sizes, directories, names, and sectors in place. A few blocks are written at a time, then everything is fsync'd,
 * and only then is said, as one line: "cut COUNT CHECK". What was said was promised. The file `noise` is overwritten all the time and
 * never fsync'd, so that the disk always has something in its cache that it may lose.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 4096, SECTOR = 512, TO_A_FILE = 64, RING = 64, NOISE = 256, SHOWN = 10 };

static const char *folder;

static void give_up(const char *what)
{
	fprintf(stderr, "cutwriter: %s: %s\n", what, strerror(errno));
	exit(2);
}

static char *path(const char *format, ...)
{
	static char name[4096];
	int length = snprintf(name, sizeof name, "%s/", folder);
	va_list rest;
	va_start(rest, format);
	vsnprintf(name + length, sizeof name - (size_t)length, format, rest);
	va_end(rest);
	return name;
}

/* CRC-32, as in zlib. */
static uint32_t checksum(const unsigned char *data, size_t length)
{
	uint32_t sum = ~0u;
	while (length--) {
		sum ^= *data++;
		for (int bit = 0; bit < 8; bit++)
			sum = sum >> 1 ^ (0xedb88320u & -(sum & 1));
	}
	return ~sum;
}

/* SplitMix64: every word follows from the block's number and its place. */
static uint64_t scrambled(uint64_t seed)
{
	seed += 0x9e3779b97f4a7c15u;
	seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9u;
	seed = (seed ^ seed >> 27) * 0x94d049bb133111ebu;
	return seed ^ seed >> 31;
}

static void fill(unsigned char *data, size_t length, uint64_t number)
{
	for (size_t at = 0; at < length; at += 8) {
		uint64_t word = at ? scrambled(number * (BLOCK / 8) + at / 8) : number;
		memcpy(data + at, &word, 8);
	}
}

static void put(int file, const void *data, size_t length, off_t at)
{
	if (pwrite(file, data, length, at) != (ssize_t)length)
		give_up("write");
}

static int open_or_give_up(const char *name, int how)
{
	int file = open(name, how, 0644);
	if (file < 0)
		give_up(name);
	return file;
}

static void sync_or_give_up(int file)
{
	if (fsync(file) != 0)
		give_up("fsync");
}

static void promise(uint64_t count)
{
	char line[64];
	int length = snprintf(line, sizeof line, "%llu", (unsigned long long)count);
	uint32_t sum = checksum((unsigned char *)line, (size_t)length);
	length = snprintf(line, sizeof line, "cut %llu %08x\n", (unsigned long long)count, sum);
	if (write(1, line, (size_t)length) != length)
		give_up("the promise");
}

static _Noreturn void write_blocks(uint64_t most)
{
	unsigned char data[BLOCK];
	int home = open_or_give_up(folder, O_RDONLY | O_DIRECTORY);
	int ring = open_or_give_up(path("ring"), O_WRONLY | O_CREAT);
	int noise = open_or_give_up(path("noise"), O_WRONLY | O_CREAT);
	int file = -1;
	for (uint64_t number = 0; number < most;) {
		for (uint64_t at = 0; at < 8; at++) {
			off_t where = (off_t)(scrambled(number + at) % NOISE) * BLOCK;
			fill(data, BLOCK, ~number);
			put(noise, data, BLOCK, where);
			/* To the disk, without a flush. */
			if (sync_file_range(noise, where, BLOCK, SYNC_FILE_RANGE_WRITE) != 0)
				give_up("sync_file_range");
		}
		uint64_t batch = 1 + scrambled(number) % 8;
		for (; batch && number < most; batch--, number++) {
			uint64_t in_file = number % TO_A_FILE;
			if (in_file == 0)
				file = open_or_give_up(path("%08llu.part", (unsigned long long)(number / TO_A_FILE)), O_WRONLY | O_CREAT | O_TRUNC);
			fill(data, BLOCK, number);
			put(file, data, BLOCK, (off_t)in_file * BLOCK);
			put(ring, data, SECTOR, (off_t)(number % RING) * SECTOR);
			if (in_file == TO_A_FILE - 1) {
				char from[4096];
				sync_or_give_up(file);
				close(file);
				strcpy(from, path("%08llu.part", (unsigned long long)(number / TO_A_FILE)));
				if (rename(from, path("%08llu", (unsigned long long)(number / TO_A_FILE))) != 0)
					give_up("rename");
				file = -1;
			}
		}
		if (file >= 0)
			sync_or_give_up(file);
		sync_or_give_up(ring);
		sync_or_give_up(home);
		promise(number);
	}
	for (;;)
		pause();
}

/* Why a block is not what it was; NULL if it is. */
static const char *wrong(uint64_t number)
{
	unsigned char data[BLOCK], wanted[BLOCK];
	unsigned long long name = number / TO_A_FILE;
	int file = open(path("%08llu", name), O_RDONLY);
	if (file < 0)
		file = open(path("%08llu.part", name), O_RDONLY);
	if (file < 0)
		return "its file is not there";
	ssize_t got = pread(file, data, BLOCK, (off_t)(number % TO_A_FILE) * BLOCK);
	close(file);
	if (got < 0)
		return strerror(errno);
	if (got < BLOCK)
		return "its file ends before it";
	fill(wanted, BLOCK, number);
	return memcmp(data, wanted, BLOCK) ? "it holds something else" : NULL;
}

/* A sector of the ring holds the last number that was promised for it, or a later one. */
static const char *wrong_in_ring(uint64_t promised)
{
	unsigned char data[SECTOR], wanted[SECTOR];
	uint64_t number;
	int file = open(path("ring"), O_RDONLY);
	if (file < 0)
		return "the ring is not there";
	ssize_t got = pread(file, data, SECTOR, (off_t)(promised % RING) * SECTOR);
	close(file);
	if (got < SECTOR)
		return got < 0 ? strerror(errno) : "the ring ends before it";
	memcpy(&number, data, sizeof number);
	fill(wanted, SECTOR, number);
	if (number % RING != promised % RING || memcmp(data, wanted, SECTOR))
		return "its sector of the ring holds something else";
	return number < promised ? "its sector of the ring holds an older one" : NULL;
}

static int check_blocks(uint64_t count)
{
	uint64_t lost = 0;
	for (uint64_t number = 0; number < count; number++) {
		const char *why = wrong(number);
		if (!why && number + RING >= count)
			why = wrong_in_ring(number);
		if (why && ++lost <= SHOWN)
			printf("block %llu: %s\n", (unsigned long long)number, why);
	}
	printf("checked %llu lost %llu\n", (unsigned long long)count, (unsigned long long)lost);
	return lost != 0;
}

int main(int count, char **words)
{
	char *end;
	uint64_t number = count == 4 ? strtoull(words[3], &end, 10) : 0;
	if (count != 4 || *end || (strcmp(words[1], "write") && strcmp(words[1], "check"))) {
		fprintf(stderr, "usage: cutwriter write|check FOLDER COUNT\n");
		return 2;
	}
	folder = words[2];
	if (strcmp(words[1], "check") == 0)
		return check_blocks(number);
	write_blocks(number);
}
