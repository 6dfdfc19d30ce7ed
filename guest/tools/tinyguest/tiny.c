/* tinyguest: the smallest guest that shows whether a hypervisor keeps a machine alive. Started by PVH, one CPU, no paging, a few KiB.
 *
 * It beats by the timer of its own local APIC, and says so on its console: the first serial port (0x3f8) and, under Xen, the console that
 * Xen gives to each of its guests.
 *
 *   tiny: ready              once, when it can be used
 *   tiny: beat N TSC         for each tick: how many there were, and the CPU's time stamp counter; both decimal
 *   tiny: digest HEX         of the memory that it does not use itself, 16 hexadecimal digits: FNV-1a's steps over words of 32 bits
 *   tiny: pong               answer to the byte p on the console; d asks for the digest
 *   tiny: key HEX            with vga or frames: the character of a key that was pressed on the PS/2 keyboard
 *   tiny: no screen          frames without a display adapter that it knows (Bochs VBE)
 *
 * Words of its command line:
 *   hz=N       ticks a second, 1 to 1000; without it 1
 *   every=MS   milliseconds between two ticks instead, 1 to 60000
 *   terse      a beat is the one byte `.`: each byte costs an exit to the hypervisor
 *   nobeat     ready, and then nothing for ever: a guest that hangs
 *   touch      writes to each page of its memory before it is ready
 *   fill=SEED  fills its memory with a pattern of that seed before it is ready, and says the digest
 *   vga        shows on the text screen what is typed
 *   counts     with vga: shows the number of each beat on the second line, four hexadecimal digits
 *   frames     draws a new picture on a screen of 640 x 480 each tick: bands of colour that move, in them rows of blocks of 16 x 16 pixels,
 *              white for 1: on top 32 with the number of the frame, from y = 32 on 8 with the last key, at once when it is pressed
 *   apic=HZ    how fast the APIC's timer counts; without it 100 MHz under Xen, 1 GHz elsewhere, as KVM and QEMU have it
 *
 * The console is read when the serial port interrupts, and at each tick.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct start_info {
	u32 magic, version, flags, modules;
	u64 module_list, command_line, rsdp, memory_map;
	u32 memory_entries;
};
struct memory_entry {
	u64 address, size;
	u32 type, reserved;
};
#define START_MAGIC 0x336ec578
#define RAM 1

struct frame;
struct gate {
	u16 low, selector, kind, high;
} __attribute__((packed));

extern char image_end[];
static char words[1024];
static struct gate gates[256] __attribute__((aligned(8)));
static volatile u32 ticks;
static u32 memory_from, memory_to; /* what it does not use itself */

static inline void out8(u16 port, u8 value) { asm volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { asm volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { asm volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u16 port)
{
	u8 value;
	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}
static inline u16 in16(u16 port)
{
	u16 value;
	asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}
static inline u32 in32(u16 port)
{
	u32 value;
	asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}
static inline u64 tsc(void)
{
	u64 value;
	asm volatile("rdtsc" : "=A"(value));
	return value;
}
static inline void cpuid(u32 leaf, u32 *a, u32 *b, u32 *c, u32 *d)
{
	asm volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(0));
}

/* --- words of the command line ------------------------------------------------------------------------------------------------------- */

/* What stands behind `name` (which ends in = or is the whole word); 0 if it is not there. */
static const char *word(const char *name)
{
	for (const char *at = words; *at;) {
		const char *a = at, *b = name;
		while (*b && *a == *b)
			a++, b++;
		if (!*b && (b[-1] == '=' || !*a || *a == ' '))
			return a;
		while (*at && *at != ' ')
			at++;
		while (*at == ' ')
			at++;
	}
	return 0;
}

static u32 number(const char *name, u32 without)
{
	const char *text = word(name);
	u32 value = 0;
	if (!text || *text < '0' || *text > '9')
		return without;
	for (; *text >= '0' && *text <= '9'; text++)
		value = value * 10 + (*text - '0');
	return value;
}

/* --- consoles: a serial port, and that of Xen (xen/include/public/io/console.h) ----------------------------------------------------------- */

#define COM1 0x3f8
#define FIFO 14 /* bytes that its transmitter takes without being asked */

struct xen_console {
	u8 in[1024], out[2048];
	volatile u32 in_cons, in_prod, out_cons, out_prod;
};
static char hypercalls[4096] __attribute__((aligned(4096)));
static struct xen_console *xen_console;
static u32 xen_port;
static int serial, under_xen;
static volatile int serial_interrupted; /* a look costs an exit: only when there is something */

static u32 hypercall(u32 which, u32 first, void *second)
{
	u32 result = (u32)hypercalls + 32 * which;
	asm volatile("call *%0" : "+a"(result), "+b"(first), "+c"(second)::"memory");
	return result;
}

static u64 xen_parameter(u32 index)
{
	struct {
		u16 domain, pad;
		u32 index;
		u64 value;
	} asked = {.domain = 0x7ff0, .index = index};
	return hypercall(34, 1, &asked) ? 0 : asked.value; /* hvm_op, HVMOP_get_param */
}

static void find_xen(void)
{
	u32 a, b, c, d;
	cpuid(1, &a, &b, &c, &d);
	for (u32 base = 0x40000000; (c & 1u << 31) && base < 0x40001000; base += 0x100) {
		u32 sign_b, sign_c, sign_d;
		cpuid(base, &a, &sign_b, &sign_c, &sign_d);
		if (sign_b != 0x566e6558 || sign_c != 0x65584d4d || sign_d != 0x4d4d566e) /* XenVMMXenVMM */
			continue;
		under_xen = 1;
		cpuid(base + 2, &a, &b, &c, &d);
		asm volatile("wrmsr" ::"c"(b), "a"(hypercalls), "d"(0) : "memory");
		u64 page = xen_parameter(17); /* HVM_PARAM_CONSOLE_PFN, _EVTCHN */
		if (page && page < 0x100000) {
			xen_console = (struct xen_console *)(u32)(page << 12);
			xen_port = xen_parameter(18);
		}
		return;
	}
}

static void start_serial(void)
{
	serial = in8(COM1 + 5) != 0xff;
	if (!serial)
		return;
	serial_interrupted = 1; /* something may be there already */
	out8(COM1 + 2, 0x07); /* FIFOs on, and empty */
	out8(COM1 + 4, 0x0b); /* DTR, RTS, and OUT2, which lets interrupts through */
	out8(COM1 + 1, 0x01); /* interrupt on a received byte */
}

static void say(const char *text, u32 length)
{
	for (u32 done = 0; serial && done < length; done++) {
		for (u32 tries = 0; done % FIFO == 0 && length > 1 && !(in8(COM1 + 5) & 0x20) && tries < 100000; tries++)
			;
		out8(COM1, text[done]);
	}
	if (!xen_console)
		return;
	for (u32 done = 0; done < length; done++) {
		u32 at = xen_console->out_prod;
		if (at - xen_console->out_cons >= sizeof xen_console->out)
			break; /* nobody reads: what is new is lost, and the beat goes on */
		xen_console->out[at % sizeof xen_console->out] = text[done];
		asm volatile("" ::: "memory");
		xen_console->out_prod = at + 1;
	}
	hypercall(32, 4, &xen_port); /* event_channel_op, EVTCHNOP_send */
}

/* A byte of the console, or -1. */
static int heard(void)
{
	if (serial && (serial_interrupted || under_xen)) {
		serial_interrupted = 0;
		if (in8(COM1 + 5) & 1) {
			serial_interrupted = 1;
			return in8(COM1);
		}
	}
	if (xen_console && xen_console->in_cons != xen_console->in_prod) {
		u32 at = xen_console->in_cons;
		u8 byte = xen_console->in[at % sizeof xen_console->in];
		xen_console->in_cons = at + 1;
		hypercall(32, 4, &xen_port);
		return byte;
	}
	return -1;
}

struct line {
	char text[100];
	u32 length;
};

static void add(struct line *line, const char *text)
{
	while (*text && line->length < sizeof line->text)
		line->text[line->length++] = *text++;
}

static void add_decimal(struct line *line, u64 value)
{
	char digits[21];
	u32 at = sizeof digits - 1, high = value >> 32, low = value;
	digits[at] = 0;
	do { /* by 10 in two steps: there is no 64-bit division here */
		u32 rest = high % 10;
		high /= 10;
		asm("divl %2" : "+a"(low), "+d"(rest) : "r"(10u));
		digits[--at] = '0' + rest;
	} while (high || low);
	add(line, digits + at);
}

static void add_hex(struct line *line, u64 value, int digits)
{
	char text[2] = {0, 0};
	while (digits--) {
		text[0] = "0123456789abcdef"[value >> 4 * digits & 15];
		add(line, text);
	}
}

static void say_line(struct line *line)
{
	add(line, "\n");
	say(line->text, line->length);
}

static void say_text(const char *text)
{
	struct line line = {.length = 0};
	add(&line, text);
	say_line(&line);
}

/* --- memory ------------------------------------------------------------------------------------------------------------------------------ */

/* From the end of the program to the end of the stretch of RAM that it lies in; below 3 GiB, where devices begin. */
static void find_memory(const struct start_info *info)
{
	const struct memory_entry *entry = (const struct memory_entry *)(u32)info->memory_map;
	u32 own = (u32)image_end;
	memory_from = memory_to = (own + 4095) & ~4095u;
	for (u32 n = 0; info->version >= 1 && n < info->memory_entries && n < 128; n++) {
		u64 end = entry[n].address + entry[n].size;
		if (entry[n].type == RAM && entry[n].address < own && end > memory_from)
			memory_to = end < 0xc0000000u ? (u32)end & ~4095u : 0xc0000000u;
	}
}

static void fill(u32 seed)
{
	for (u32 *at = (u32 *)memory_from; at < (u32 *)memory_to; at++) {
		u32 x = (seed + (u32)at) * 2654435761u;
		x ^= x >> 15;
		*at = x * 2246822519u;
	}
}

static void touch(void)
{
	for (u32 at = memory_from; at < memory_to; at += 4096)
		*(volatile u32 *)at = at;
}

static void say_digest(void)
{
	struct line line = {.length = 0};
	u64 digest = 0xcbf29ce484222325ull;
	for (const u32 *at = (const u32 *)memory_from; at < (const u32 *)memory_to; at++)
		digest = (digest ^ *at) * 0x100000001b3ull;
	add(&line, "tiny: digest ");
	add_hex(&line, digest, 16);
	say_line(&line);
}

/* --- keyboard and screens ---------------------------------------------------------------------------------------------------------------- */

static volatile u8 typed[16];
static volatile u32 typed_in;
static u32 typed_out, column, row = 2;
static u8 last_key;
static u32 *picture;
#define WIDTH 640
#define HEIGHT 480
#define BLOCK 16

/* Scan codes of set 1, those that are characters on a US keyboard. */
static const char plain[] = "\0\0331234567890-=\b\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[] = "\0\033!@#$%^&*()_+\b\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

static void start_keyboard(void)
{
	for (u32 tries = 0; (in8(0x64) & 2) && tries < 1000; tries++)
		;
	out8(0x64, 0x60); /* the controller's byte: interrupt 1, keyboard on, translated to set 1 */
	for (u32 tries = 0; (in8(0x64) & 2) && tries < 1000; tries++)
		;
	out8(0x60, 0x65);
	while (in8(0x64) & 1)
		in8(0x60);
}

static void show(char byte)
{
	volatile u16 *screen = (volatile u16 *)0xb8000;
	if (byte == '\b' && column)
		screen[row * 80 + --column] = 0x0700 | ' ';
	else if (byte >= ' ' && byte <= '~')
		screen[row * 80 + column++] = 0x0f00 | (u8)byte;
	if (byte == '\n' || column == 80)
		column = 0, row++;
	if (row < 25)
		return;
	for (u32 at = 2 * 80; at < 25 * 80; at++)
		screen[at] = at < 24 * 80 ? screen[at + 80] : 0x0700 | ' ';
	row = 24;
}

static void start_text(void)
{
	static const char title[] = "tiny: what you type is shown here";
	volatile u16 *screen = (volatile u16 *)0xb8000;
	for (u32 at = 0; at < 80 * 25; at++)
		screen[at] = 0x0700 | ' ';
	for (u32 at = 0; title[at]; at++)
		screen[at] = 0x1e00 | (u8)title[at];
}

/* Few writes: each to the text screen costs an exit. */
static void show_count(u32 beat)
{
	volatile u16 *at = (volatile u16 *)0xb8000 + 80;
	for (u32 digit = 0; digit < 4; digit++)
		at[digit] = 0x0f00 | (u8)"0123456789abcdef"[beat >> 4 * (3 - digit) & 15];
}

static void draw_bits(u32 y, u32 value, u32 bits)
{
	for (u32 line = y; line < y + BLOCK; line++)
		for (u32 x = 0; x < bits * BLOCK; x++)
			picture[line * WIDTH + x] = value >> (bits - 1 - x / BLOCK) & 1 ? 0xffffff : 0;
}

static void draw_key(void) { draw_bits(2 * BLOCK, last_key, 8); }

static void take_keys(int text)
{
	static int shift;
	while (typed_out != typed_in) {
		u8 code = typed[typed_out++ % sizeof typed];
		if ((code & 0x7f) == 0x2a || (code & 0x7f) == 0x36)
			shift = !(code & 0x80);
		char byte = code < sizeof plain - 1 ? (shift ? shifted : plain)[code] : 0;
		if (!byte)
			continue;
		last_key = byte;
		if (text)
			show(byte);
		if (picture)
			draw_key();
		struct line line = {.length = 0};
		add(&line, "tiny: key ");
		add_hex(&line, last_key, 2);
		say_line(&line);
	}
}

static u32 pci(u32 device, u32 offset)
{
	out32(0xcf8, 0x80000000u | device << 11 | offset);
	return in32(0xcfc);
}

/* A mode of the Bochs display adapter (VBE_DISPI, as QEMU's docs/specs/standard-vga has it). */
static void start_picture(void)
{
	static const u16 mode[][2] = {{4, 0}, {1, WIDTH}, {2, HEIGHT}, {3, 32}, {4, 0x41}};
	out16(0x1ce, 0);
	if ((in16(0x1cf) & 0xfff0) != 0xb0c0)
		return;
	for (u32 device = 0; device < 32 && !picture; device++)
		if (pci(device, 0) != 0xffffffffu && pci(device, 8) >> 16 == 0x0300) /* a VGA adapter: its first region */
			picture = (u32 *)(pci(device, 0x10) & ~15u);
	for (u32 n = 0; picture && n < sizeof mode / sizeof *mode; n++) {
		out16(0x1ce, mode[n][0]);
		out16(0x1cf, mode[n][1]);
	}
}

static void draw(u32 frame)
{
	for (u32 y = 0; y < HEIGHT; y++) {
		u32 shade = (y + frame * 4) & 0xff, colour = shade | (255 - shade) << 8 | (y & 0x7f) << 16, count = WIDTH;
		u32 *at = picture + y * WIDTH;
		asm volatile("rep stosl" : "+D"(at), "+c"(count) : "a"(colour) : "memory");
	}
	draw_bits(0, frame, 32);
	draw_key();
}

/* --- interrupts ------------------------------------------------------------------------------------------------------------------------- */

#define APIC(offset) (*(volatile u32 *)(0xfee00000u + (offset)))
#define TIMER 0x20
#define LEGACY 0x30

__attribute__((interrupt)) static void on_timer(struct frame *frame)
{
	(void)frame;
	ticks++;
	APIC(0xb0) = 0;
}

__attribute__((interrupt)) static void on_key(struct frame *frame)
{
	(void)frame;
	u8 code = in8(0x60);
	if (typed_in - typed_out < sizeof typed)
		typed[typed_in++ % sizeof typed] = code;
	out8(0x20, 0x20);
}

__attribute__((interrupt)) static void on_serial(struct frame *frame)
{
	(void)frame;
	serial_interrupted = 1;
	out8(0x20, 0x20);
}

__attribute__((interrupt)) static void on_nothing(struct frame *frame) { (void)frame; }

static void gate(u32 vector, void (*handler)(struct frame *))
{
	gates[vector] = (struct gate){(u32)handler, 0x08, 0x8e00, (u32)handler >> 16};
}

static void start_interrupts(int keyboard)
{
	static const u8 setup[] = {0x11, LEGACY, 4, 1}, second[] = {0x11, LEGACY + 8, 2, 1};
	struct {
		u16 size;
		u32 where;
	} __attribute__((packed)) table = {sizeof gates - 1, (u32)gates};
	gate(TIMER, on_timer);
	gate(LEGACY + 1, on_key);
	gate(LEGACY + 4, on_serial);
	gate(LEGACY + 7, on_nothing);
	gate(0xff, on_nothing);
	asm volatile("lidt %0" ::"m"(table));
	if (!under_xen) { /* the two interrupt controllers of a PC: only keyboard and serial port get through */
		for (u32 n = 0; n < sizeof setup; n++) {
			out8(n ? 0x21 : 0x20, setup[n]);
			out8(n ? 0xa1 : 0xa0, second[n]);
		}
		out8(0x21, keyboard ? 0xed : 0xef);
		out8(0xa1, 0xff);
	}
	APIC(0xf0) = 0x1ff;  /* on; vector of spurious interrupts */
	APIC(0x350) = 0x700; /* LINT0: what the two controllers above say */
}

static u32 within(u32 value, u32 low, u32 high, u32 without) { return low <= value && value <= high ? value : without; }

static void start_timer(void)
{
	/* It counts each 16th tick of the bus: a minute of 1 GHz is still a number of 32 bits. */
	u32 a_second = number("apic=", under_xen ? 100000000 : 1000000000) / 16, every = within(number("every=", 0), 1, 60000, 0);
	APIC(0x3e0) = 0x3;
	APIC(0x320) = 0x20000 | TIMER;
	APIC(0x380) = every ? a_second / 1000 * every : a_second / within(number("hz=", 1), 1, 1000, 1);
}

void run(const struct start_info *info)
{
	if (info->magic == START_MAGIC && info->command_line) {
		const char *from = (const char *)(u32)info->command_line;
		for (u32 n = 0; n < sizeof words - 1 && from[n]; n++)
			words[n] = from[n];
	}
	if (info->magic == START_MAGIC)
		find_memory(info);
	find_xen();
	start_serial();

	int text = word("vga") != 0, counts = text && word("counts") != 0, frames = word("frames") != 0, terse = word("terse") != 0, beats = !word("nobeat");
	u32 beaten = 0;
	if (text || frames)
		start_keyboard();
	if (text)
		start_text();
	if (frames) {
		start_picture();
		if (!picture)
			say_text("tiny: no screen");
	}
	start_interrupts(text || frames);
	if (word("touch"))
		touch();
	if (word("fill=")) {
		fill(number("fill=", 0));
		say_digest();
	}
	say_text("tiny: ready");
	if (beats)
		start_timer();
	for (;;) {
		int byte;
		take_keys(text);
		while ((byte = heard()) >= 0 && beats) {
			if (byte == 'p')
				say_text("tiny: pong");
			if (byte == 'd')
				say_digest();
		}
		if (ticks != beaten) {
			beaten = ticks;
			if (picture)
				draw(beaten);
			if (counts)
				show_count(beaten);
			if (terse) {
				say(".", 1);
			} else {
				struct line line = {.length = 0};
				add(&line, "tiny: beat ");
				add_decimal(&line, beaten);
				add(&line, " ");
				add_decimal(&line, tsc());
				say_line(&line);
			}
		}
		asm volatile("cli");
		if (ticks == beaten && typed_in == typed_out && !serial_interrupted)
			asm volatile("sti; hlt"); /* an interrupt between the two wakes it all the same: sti holds it back for one instruction */
		asm volatile("sti");
	}
}
