/* What is found is told on the serial port that the kernel's command line calls its console, one line each:
 *   labctl-loader: kernel poly1305:HEX ok
 *   labctl-loader: initrd poly1305:HEX is not as sent
 *
 * On the port itself, not through the firmware: a BIOS has no way to it, and what UEFI writes there goes to a terminal of 80 columns, in
 * between its own sequences, if to that port at all.
 */
#include "check.h"

const char names[PARTS][8] = { "kernel", "cmdline", "initrd" }; /* no addresses: nobody would set those right in an EFI application */

/* --- words ------------------------------------------------------------------------------------------------------------ */

static const uint16_t ports[4] = { 0x3f8, 0x2f8, 0x3e8, 0x2e8 };
static uint16_t port = 0x3f8;

static void out8(uint16_t at, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(at)); }
static uint8_t in8(uint16_t at) { uint8_t value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(at)); return value; }

static void say_byte(char c)
{
	for (uint32_t i = 0; i < 1000000 && !(in8(port + 5) & 0x20); i++) /* a port that is not there is not waited for */
		;
	out8(port, c);
}

void say(const char *text)
{
	for (; *text; text++) {
		if (*text == '\n')
			say_byte('\r');
		say_byte(*text);
	}
}

void stop(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

void give_up(const char *part, const char *why)
{
	say("labctl-loader: ");
	say(part);
	say(why);
	say("\n");
	stop();
}

const char *find(const char *text, const char *word)
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

void open_serial(const char *command_line)
{
	uint32_t baud = 0;
	const char *at = find(command_line, "console=ttyS");
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

/* --- the check -------------------------------------------------------------------------------------------------------- */

static const char digits[] = "0123456789abcdef";

/* Bytes from `count` pairs of digits; 0 if something else stands there. */
static int bytes_of(const char *hex, uint8_t *bytes, uint32_t count)
{
	for (uint32_t i = 0; i < 2 * count; i++) {
		uint32_t value = 0;
		while (value < 16 && digits[value] != hex[i])
			value++;
		if (value == 16)
			return 0;
		bytes[i / 2] = (uint8_t)(i % 2 ? bytes[i / 2] | value : value << 4);
	}
	return 1;
}

void read_key(const char *own, uint8_t key[KEY])
{
	const char *secret = find(own, " key=");
	if (!secret || !bytes_of(secret, key, KEY))
		give_up("loader", ": was given no key");
}

void check(unsigned number, const uint8_t *bytes, uint32_t size, const char *own, const uint8_t key[KEY])
{
	char word[16] = " ", *w = word + 1;
	for (const char *c = names[number]; *c; c++)
		*w++ = *c;
	*w++ = '=';
	*w = 0;
	const char *sent = find(own, word);
	uint8_t tag[TAG], wanted[TAG];
	char hex[2 * TAG + 1];
	poly1305(bytes, size, key, tag);
	for (int i = 0; i < 2 * TAG; i++)
		hex[i] = digits[tag[i / 2] >> (i % 2 ? 0 : 4) & 15];
	hex[2 * TAG] = 0;
	say("labctl-loader: ");
	say(names[number]);
	say(" poly1305:");
	say(hex);
	int same = sent && bytes_of(sent, wanted, TAG);
	for (int i = 0; same && i < TAG; i++)
		same = wanted[i] == tag[i];
	say(same ? " ok\n" : " is not as sent\n");
	if (!same)
		stop();
}
