/* By words of 32 bits, whose products are of 64; most of it by words of 64 where the processor has them, which is five times faster where it is
 * emulated. Runs on little-endian processors that read words from any address.
 */
#include "poly1305.h"

typedef uint64_t wide;

struct state { /* as poly1305_long.h knows it */
	uint32_t h0, h1, h2, h3, h4; /* below 2^130 and a little more: h4 has 3 bits */
	uint32_t r0, r1, r2, r3;
};

int has_long_mode(void);
void blocks_long(struct state *s, const uint32_t *p, uint32_t count, uint32_t high);

/* h = (h + block + 2^128 * high) * r modulo 2^130 - 5. The clamped r has words below 2^28, of which all but the first are multiples of 4. So
 * no sum is above 2^64, and a word of r times 2^128 is 5/4 of it: a whole number. */
static void blocks(struct state *s, const uint32_t *p, uint32_t count, uint32_t high)
{
	uint32_t h0 = s->h0, h1 = s->h1, h2 = s->h2, h3 = s->h3, h4 = s->h4;
	const uint32_t r0 = s->r0, r1 = s->r1, r2 = s->r2, r3 = s->r3;
	const uint32_t s1 = r1 + (r1 >> 2), s2 = r2 + (r2 >> 2), s3 = r3 + (r3 >> 2);
	for (; count; count--, p += 4) {
		wide d0, d1, d2, d3;
		h0 = (uint32_t)(d0 = (wide)h0 + p[0]);
		h1 = (uint32_t)(d1 = (wide)h1 + (d0 >> 32) + p[1]);
		h2 = (uint32_t)(d2 = (wide)h2 + (d1 >> 32) + p[2]);
		h3 = (uint32_t)(d3 = (wide)h3 + (d2 >> 32) + p[3]);
		h4 += (uint32_t)(d3 >> 32) + high;

		d0 = (wide)h0 * r0 + (wide)h1 * s3 + (wide)h2 * s2 + (wide)h3 * s1;
		d1 = (wide)h0 * r1 + (wide)h1 * r0 + (wide)h2 * s3 + (wide)h3 * s2 + h4 * s1;
		d2 = (wide)h0 * r2 + (wide)h1 * r1 + (wide)h2 * r0 + (wide)h3 * s3 + h4 * s2;
		d3 = (wide)h0 * r3 + (wide)h1 * r2 + (wide)h2 * r1 + (wide)h3 * r0 + h4 * s3;
		h4 *= r0;

		h0 = (uint32_t)d0;
		h1 = (uint32_t)(d1 += d0 >> 32);
		h2 = (uint32_t)(d2 += d1 >> 32);
		h3 = (uint32_t)(d3 += d2 >> 32);
		h4 += (uint32_t)(d3 >> 32);
		uint32_t over = (h4 >> 2) + (h4 & ~3u); /* 5 times what is above 2^130 */
		h4 &= 3;
		h0 = (uint32_t)(d0 = (wide)h0 + over);
		h1 = (uint32_t)(d1 = (wide)h1 + (d0 >> 32));
		h2 = (uint32_t)(d2 = (wide)h2 + (d1 >> 32));
		h3 = (uint32_t)(d3 = (wide)h3 + (d2 >> 32));
		h4 += (uint32_t)(d3 >> 32);
	}
	s->h0 = h0, s->h1 = h1, s->h2 = h2, s->h3 = h3, s->h4 = h4;
}

/* Where it is worth the way there. */
static uint32_t most(struct state *s, const uint32_t *p, uint32_t count)
{
	if (count < 256 || !has_long_mode())
		return 0;
	blocks_long(s, p, count, 1);
	return count;
}

static uint32_t word(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }

void poly1305(const uint8_t *data, uint32_t size, const uint8_t key[KEY], uint8_t tag[TAG])
{
	struct state s = { 0, 0, 0, 0, 0, word(key) & 0x0fffffff, word(key + 4) & 0x0ffffffc, word(key + 8) & 0x0ffffffc, word(key + 12) & 0x0ffffffc };
	uint32_t whole = size / 16, rest = size % 16;
	uint32_t done = most(&s, (const uint32_t *)data, whole);
	blocks(&s, (const uint32_t *)data + 4 * done, whole - done, 1);
	if (rest) {
		union { uint32_t words[4]; uint8_t bytes[16]; } last = { { 0, 0, 0, 0 } };
		for (uint32_t i = 0; i < rest; i++)
			last.bytes[i] = data[whole * 16 + i];
		last.bytes[rest] = 1;
		blocks(&s, last.words, 1, 0);
	}
	/* h - (2^130 - 5) if that is not negative, which is seen at the bit of 2^130 in h + 5. */
	uint32_t h[4] = { s.h0, s.h1, s.h2, s.h3 }, less[4];
	wide carry = 5;
	for (int i = 0; i < 4; i++)
		less[i] = (uint32_t)(carry += h[i]), carry >>= 32;
	const uint32_t *value = (s.h4 + (uint32_t)carry) >> 2 ? less : h;
	carry = 0;
	for (int i = 0; i < 4; i++) {
		carry += (wide)value[i] + word(key + 16 + 4 * i);
		for (int byte = 0; byte < 4; byte++)
			tag[4 * i + byte] = (uint8_t)(carry >> 8 * byte);
		carry >>= 32;
	}
}
