/* Starts another kernel from a running Linux, without firmware in between: what the driver kexec sends to the machine.
 *
 *   labctl-kexec load KERNEL INITRD COMMAND-LINE    INITRD may be -; the files are read, the kernel keeps what it needs of them
 *   labctl-kexec boot                               says so on its output, and does not come back
 *
 * By kexec_file_load(2), for which the running kernel itself checks and prepares everything. The exit status is the error's number
 * (errno(3)), 0 if all is well, 255 for wrong words. No library: it runs on whatever is there, and is small enough for any line.
 */
enum { READ = 0, WRITE = 1, OPEN = 2, IOCTL = 16, SYNC = 162, REBOOT = 169, EXIT = 60, KEXEC_FILE_LOAD = 320 }; /* x86_64 */
enum { NO_INITRAMFS = 4, MOST = 4096 };
#define MAGIC 0xfee1deadL
#define MAGIC2 672274793L
#define KEXEC 0x45584543L
#define DRAIN 0x5409L /* TCSBRK with a number: until what was written is sent */

static long call(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return number;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static long load(char **words)
{
	static char line[MOST];
	long size = 0, got, initrd = -1;
	long kernel = call(OPEN, (long)words[0], 0, 0, 0, 0);
	if (kernel < 0)
		return -kernel;
	if (!same(words[1], "-") && (initrd = call(OPEN, (long)words[1], 0, 0, 0, 0)) < 0)
		return -initrd;
	long file = call(OPEN, (long)words[2], 0, 0, 0, 0);
	if (file < 0)
		return -file;
	while (size < MOST - 1 && (got = call(READ, file, (long)line + size, MOST - 1 - size, 0, 0)) > 0)
		size += got;
	return -call(KEXEC_FILE_LOAD, kernel, initrd, size + 1, (long)line, initrd < 0 ? NO_INITRAMFS : 0);
}

__attribute__((used)) static void begin(long *stack)
{
	char **words = (char **)(stack + 1);
	long status = 255;
	if (stack[0] == 5 && same(words[1], "load")) {
		status = load(words + 2);
	} else if (stack[0] == 2 && same(words[1], "boot")) {
		static const char now[] = "\nlabctl-kexec: now\n", refused[] = "labctl-kexec: refused\n";
		call(SYNC, 0, 0, 0, 0, 0);
		call(WRITE, 1, (long)now, sizeof now - 1, 0, 0);
		call(IOCTL, 1, DRAIN, 1, 0, 0);
		status = -call(REBOOT, MAGIC, MAGIC2, KEXEC, 0, 0);
		call(WRITE, 1, (long)refused, sizeof refused - 1, 0, 0);
	}
	call(EXIT, status, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall begin\n");
