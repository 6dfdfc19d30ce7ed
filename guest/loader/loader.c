/* Boots what the network gave only if it is what was sent.
 *
 * iPXE cannot check a digest, so it loads this in the kernel's place, by the multiboot protocol (version 1, 3.2 to 3.4), and the kernel, its
 * command line and its initramfs as modules in this order. Our own command line has a key, which the lab made for this offer, and the tag of each
 * under it (poly1305.h). If they are right, the kernel is started by the 16-bit protocol of Linux (Documentation/arch/x86/boot.rst), so that it
 * asks the firmware itself, as it does after any boot loader.
 */
#include "check.h"

struct module { uint32_t start, end, string, reserved; };
struct info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};
struct region { uint32_t size; uint64_t base, length; uint32_t type; } __attribute__((packed));

#define SETUP 0x40000u          /* where the kernel's real-mode code goes: 64 KiB of it, its stack and heap included */
#define COMMAND_LINE 0x50000u
#define COMMAND_LINE_MAX 0x8000u
#define KERNEL 0x100000u

/* --- words of 64 bits (start.S goes there and back) --------------------------------------------------------------------- */

static void ask_cpu(uint32_t leaf, uint32_t *a, uint32_t *d)
{
	uint32_t b, c = 0;
	__asm__ volatile("cpuid" : "=a"(*a), "=b"(b), "+c"(c), "=d"(*d) : "a"(leaf));
}

int has_long_mode(void)
{
	uint32_t a, d;
	ask_cpu(0x80000000u, &a, &d);
	if (a < 0x80000001u)
		return 0;
	ask_cpu(0x80000001u, &a, &d);
	return d >> 29 & 1;
}

uint64_t tables[6][512] __attribute__((aligned(4096)));

/* Each address below 4 GiB is itself: one table of 512 GiB each, one of 1 GiB each, four of 2 MiB each. */
void make_tables(void)
{
	tables[0][0] = (uint32_t)tables[1] | 3;
	for (uint32_t i = 0; i < 4; i++)
		tables[1][i] = (uint32_t)tables[2 + i] | 3;
	for (uint32_t i = 0; i < 4 * 512; i++)
		tables[2 + i / 512][i % 512] = (uint64_t)i << 21 | 0x83;
}

/* --- memory ----------------------------------------------------------------------------------------------------------- */

void *memcpy(void *to, const void *from, unsigned long n)
{
	void *d = to;
	unsigned long words = n / 4, rest = n % 4;
	__asm__ volatile("cld; rep movsl; mov %3, %2; rep movsb" : "+D"(d), "+S"(from), "+c"(words) : "r"(rest) : "memory");
	return to;
}

void *memset(void *to, int value, unsigned long n)
{
	void *d = to;
	__asm__ volatile("cld; rep stosb" : "+D"(d), "+c"(n) : "a"(value) : "memory");
	return to;
}

static void move_up(uint32_t to, uint32_t from, uint32_t n)
{
	uint32_t d = to + n - 1, s = from + n - 1, rest = n % 4, words = n / 4;
	__asm__ volatile("std; rep movsb; sub $3, %0; sub $3, %1; mov %3, %2; rep movsl; cld" : "+D"(d), "+S"(s), "+c"(rest) : "r"(words) : "memory");
}

/* The highest page below `limit` from which `size` bytes are memory; 0 if there is none above `floor`. */
static uint32_t place(const struct info *info, uint32_t size, uint32_t floor, uint32_t limit)
{
	uint32_t best = 0;
	for (uint32_t at = info->mmap_addr; at < info->mmap_addr + info->mmap_length; at += ((struct region *)at)->size + 4) {
		const struct region *r = (struct region *)at;
		uint64_t end = r->base + r->length;
		if (r->type != 1 || r->base > limit)
			continue;
		if (end > limit)
			end = limit;
		if (end < size)
			continue;
		uint32_t start = (uint32_t)(end - size) & ~0xfffu;
		if (start >= r->base && start >= floor && start > best)
			best = start;
	}
	return best;
}

static uint32_t get32(uint32_t at) { return *(volatile uint32_t *)at; }
static void put32(uint32_t at, uint32_t value) { *(volatile uint32_t *)at = value; }

uint32_t verify_and_place(uint32_t magic, const struct info *info)
{
	struct module m[PARTS];
	uint32_t count = info->mods_count;
	if (magic != 0x2BADB002 || (info->flags & 0x4c) != 0x4c || count < 2 || count > PARTS)
		give_up("loader", ": was not called as it must be");
	memcpy(m, (void *)info->mods_addr, count * sizeof *m);
	uint32_t words = m[1].end - m[1].start;
	if (words >= COMMAND_LINE_MAX)
		give_up("cmdline", ": is too long");
	memset((void *)COMMAND_LINE, 0, COMMAND_LINE_MAX);
	memcpy((void *)COMMAND_LINE, (void *)m[1].start, words);
	open_serial((const char *)COMMAND_LINE);

	uint8_t key[KEY];
	const char *own = (const char *)info->cmdline;
	read_key(own, key);
	for (uint32_t i = 0; i < count; i++)
		check(i, (const uint8_t *)m[i].start, m[i].end - m[i].start, own, key);

	uint32_t kernel = m[0].start, size = m[0].end - m[0].start;
	uint32_t setup = ((*(uint8_t *)(kernel + 0x1f1) ?: 4) + 1) * 512u;
	if (size < 0x8000 || get32(kernel + 0x202) != 0x53726448 || size <= setup)
		give_up("kernel", ": is no bzImage");
	uint16_t version = (uint16_t)get32(kernel + 0x206);
	if (version < 0x20a || !(*(uint8_t *)(kernel + 0x211) & 1))
		give_up("kernel", ": is older than boot protocol 2.10");
	if (words > get32(kernel + 0x238))
		give_up("cmdline", ": is longer than this kernel takes");
	uint32_t runs_to = get32(kernel + 0x258) + get32(kernel + 0x260); /* preferred address, and what it needs from there */
	if (get32(kernel + 0x25c) || runs_to < m[count - 1].end)
		runs_to = m[count - 1].end;

	uint32_t initrd = 0, initrd_size = 0;
	if (count == PARTS) {
		initrd_size = m[2].end - m[2].start;
		uint32_t limit = get32(kernel + 0x22c);
		initrd = place(info, initrd_size, runs_to, limit < 0xfffff000u ? limit + 1 : limit);
		if (!initrd)
			give_up("initrd", ": does not fit into memory beside the kernel");
		move_up(initrd, m[2].start, initrd_size);
	}
	memset((void *)SETUP, 0, 0x10000);
	memcpy((void *)SETUP, (void *)kernel, setup);
	memcpy((void *)KERNEL, (void *)(kernel + setup), size - setup); /* downwards: the modules lie above it */
	*(volatile uint8_t *)(SETUP + 0x210) = 0xff; /* a boot loader without a number */
	*(volatile uint8_t *)(SETUP + 0x211) |= 0x80; /* heap_end_ptr is valid */
	put32(SETUP + 0x214, KERNEL);
	put32(SETUP + 0x218, initrd);
	put32(SETUP + 0x21c, initrd_size);
	*(volatile uint16_t *)(SETUP + 0x224) = 0xe000 - 0x200;
	put32(SETUP + 0x228, COMMAND_LINE);
	return SETUP >> 4;
}
