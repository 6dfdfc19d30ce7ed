/* Boots what the network gave only if it is what was sent.
 *
 * iPXE cannot check a digest, so it loads this in the kernel's place, by the multiboot protocol (version 1, 3.2 to 3.4), and the kernel, its
 * command line and its initramfs as modules in this order. Our own command line has their SHA-256. If they are right, the kernel is started
 * by the 16-bit protocol of Linux (Documentation/arch/x86/boot.rst), so that it asks the firmware itself, as it does after any boot loader.
 *
 * What is found is told on the serial port that the kernel's command line calls its console, one line each:
 *   labctl-loader: kernel sha256:HEX ok
 *   labctl-loader: initrd sha256:HEX is not as sent
 */
#include <stdint.h>

struct module { uint32_t start, end, string, reserved; };
struct info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};
struct region { uint32_t size; uint64_t base, length; uint32_t type; } __attribute__((packed));

#define SETUP 0x40000u          /* where the kernel's real-mode code goes: 64 KiB of it, its stack and heap included */
#define COMMAND_LINE 0x50000u
#define COMMAND_LINE_MAX 0x8000u
#define KERNEL 0x100000u
#define PARTS 3
static const char *const names[PARTS] = { "kernel", "cmdline", "initrd" };

/* --- words ------------------------------------------------------------------------------------------------------------ */

static uint16_t port;

static void out8(uint16_t at, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(at)); }
static uint8_t in8(uint16_t at) { uint8_t value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(at)); return value; }

static void say_byte(char c)
{
	for (uint32_t i = 0; i < 1000000 && !(in8(port + 5) & 0x20); i++) /* a port that is not there is not waited for */
		;
	out8(port, c);
}

static void say(const char *text)
{
	for (; port && *text; text++) {
		if (*text == '\n')
			say_byte('\r');
		say_byte(*text);
	}
}

static void __attribute__((noreturn)) stop(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void __attribute__((noreturn)) give_up(const char *part, const char *why)
{
	say("labctl-loader: ");
	say(part);
	say(why);
	say("\n");
	stop();
}

static const char *find(const char *text, const char *word)
{
	for (; *text; text++) {
		uint32_t i = 0;
		while (word[i] && text[i] == word[i])
			i++;
		if (!word[i])
			return text + i;
	}
	return 0;
}

static void open_serial(const char *command_line)
{
	static const uint16_t ports[4] = { 0x3f8, 0x2f8, 0x3e8, 0x2e8 };
	uint32_t baud = 0;
	const char *at = find(command_line, "console=ttyS");
	port = ports[0];
	if (!at || *at < '0' || *at > '3')
		return;
	port = ports[*at++ - '0'];
	if (*at == ',')
		for (at++; *at >= '0' && *at <= '9' && baud < 1000000; at++)
			baud = baud * 10 + (*at - '0');
	if (!baud || baud > 115200)
		return;
	out8(port + 3, 0x83);
	out8(port, (uint8_t)(115200 / baud));
	out8(port + 1, (uint8_t)((115200 / baud) >> 8));
	out8(port + 3, 0x03);
}

/* --- SHA-256 (FIPS 180-4) --------------------------------------------------------------------------------------------- */

static const uint32_t k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* One round. The names change places instead of the values: where this is emulated, each move costs. */
#define ROUND(a, b, c, d, e, f, g, h, i, word) do { \
	uint32_t t = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (g ^ (e & (f ^ g))) + k[i] + (word); \
	d += t; \
	h = t + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) | (c & (a | b))); \
} while (0)
#define EIGHT(i, W) \
	ROUND(a, b, c, d, e, f, g, h, i + 0, W(i + 0)); ROUND(h, a, b, c, d, e, f, g, i + 1, W(i + 1)); \
	ROUND(g, h, a, b, c, d, e, f, i + 2, W(i + 2)); ROUND(f, g, h, a, b, c, d, e, i + 3, W(i + 3)); \
	ROUND(e, f, g, h, a, b, c, d, i + 4, W(i + 4)); ROUND(d, e, f, g, h, a, b, c, i + 5, W(i + 5)); \
	ROUND(c, d, e, f, g, h, a, b, i + 6, W(i + 6)); ROUND(b, c, d, e, f, g, h, a, i + 7, W(i + 7))
#define FIRST(i) (w[i] = __builtin_bswap32(((const uint32_t *)p)[i]))
#define NEXT(i) (w[(i) & 15] += w[((i) + 9) & 15] + SMALL0(w[((i) + 1) & 15]) + SMALL1(w[((i) + 14) & 15]))
#define SMALL0(x) (turn(x, 7) ^ turn(x, 18) ^ (x) >> 3)
#define SMALL1(x) (turn(x, 17) ^ turn(x, 19) ^ (x) >> 10)

static void block(uint32_t s[8], const uint8_t *p)
{
	uint32_t w[16];
	uint32_t a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
	EIGHT(0, FIRST);
	EIGHT(8, FIRST);
	for (uint32_t i = 16; i < 64; i += 16) {
		const uint32_t *const k_of_all = k;
		const uint32_t *k = k_of_all + i;
		EIGHT(0, NEXT);
		EIGHT(8, NEXT);
	}
	s[0] += a, s[1] += b, s[2] += c, s[3] += d, s[4] += e, s[5] += f, s[6] += g, s[7] += h;
}

static void digest(const uint8_t *data, uint32_t size, char hex[65])
{
	uint32_t h[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	uint8_t last[128] = { 0 };
	uint32_t whole = size & ~63u, rest = size - whole, padded = rest < 56 ? 64 : 128;
	for (uint32_t i = 0; i < whole; i += 64)
		block(h, data + i);
	for (uint32_t i = 0; i < rest; i++)
		last[i] = data[whole + i];
	last[rest] = 0x80;
	*(uint32_t *)(last + padded - 8) = __builtin_bswap32(size >> 29);
	*(uint32_t *)(last + padded - 4) = __builtin_bswap32(size << 3);
	for (uint32_t i = 0; i < padded; i += 64)
		block(h, last + i);
	for (int i = 0; i < 64; i++)
		hex[i] = "0123456789abcdef"[h[i / 8] >> (28 - 4 * (i % 8)) & 15];
	hex[64] = 0;
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

	for (uint32_t i = 0; i < count; i++) {
		char hex[65];
		char word[16] = " ", *w = word + 1;
		for (const char *c = names[i]; *c; c++)
			*w++ = *c;
		*w++ = '=';
		*w = 0;
		const char *sent = find((const char *)info->cmdline, word);
		digest((const uint8_t *)m[i].start, m[i].end - m[i].start, hex);
		say("labctl-loader: ");
		say(names[i]);
		say(" sha256:");
		say(hex);
		int same = sent != 0;
		for (int c = 0; same && c < 64; c++)
			same = sent[c] == hex[c];
		say(same ? " ok\n" : " is not as sent\n");
		if (!same)
			stop();
	}

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
