// The lab's agent: runs commands and moves files for the host over one byte stream. docs/agent-protocol.md is what it must do.
//
//   agent [--modules FOLDER] [--stay] virtio:NAME | serial:DEVICE | tcp:PORT | fd:NUMBER
//
// One process, one poll loop, one job at a time, every buffer of a fixed size. A second process starts it again if it is killed; the new
// one says hello, so the host knows at once that what it waits for will not come. Nothing is ever printed on the console but why there is
// no agent at all.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
	VERSION = 1,
	MAX_PAYLOAD = 65536,
	MAX_HEADER = 48,
	MAX_FRAME = MAX_HEADER + MAX_PAYLOAD,
	CHUNK = 32768 - MAX_HEADER, // a frame of it is one write to a virtio port, whose driver takes 32 KiB at a time
	STALL_MS = 2000,            // a frame whose rest has not come by then is given up
	PORT_WAIT_MS = 30000,       // for the port to appear
	NO_PORT = 3,                // exit status: starting again would not help
	MAX_PATH = 4096,
	MAX_TOLD = 16,              // processes of a command that is late
	MAX_WORDS = 160,            // bytes of the words of each
	LOOK_MS = 500,              // for looking at them: there may be very many
};

static const char MARK[] = "LABCTL ";
enum { MARK_LENGTH = sizeof MARK - 1 };

static int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

// --- CRC-32 (IEEE 802.3), eight bytes at a time

static uint32_t crc_table[8][256];

static void crc_begin(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int k = 0; k < 8; k++)
			c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
		crc_table[0][i] = c;
	}
	for (int i = 0; i < 256; i++)
		for (int k = 1; k < 8; k++)
			crc_table[k][i] = (crc_table[k - 1][i] >> 8) ^ crc_table[0][crc_table[k - 1][i] & 0xFF];
}

static uint32_t crc32(uint32_t crc, const void *data, size_t length)
{
	const uint8_t *p = data;
	crc = ~crc;
	for (; length >= 8; length -= 8, p += 8) {
		uint32_t low, high;
		memcpy(&low, p, 4); // little-endian, as every machine of the lab is
		memcpy(&high, p + 4, 4);
		low ^= crc;
		crc = crc_table[7][low & 0xFF] ^ crc_table[6][low >> 8 & 0xFF] ^ crc_table[5][low >> 16 & 0xFF] ^ crc_table[4][low >> 24] ^
		      crc_table[3][high & 0xFF] ^ crc_table[2][high >> 8 & 0xFF] ^ crc_table[1][high >> 16 & 0xFF] ^ crc_table[0][high >> 24];
	}
	while (length--)
		crc = (crc >> 8) ^ crc_table[0][(crc ^ *p++) & 0xFF];
	return ~crc;
}

// --- SHA-256 (FIPS 180-4)

struct sha256 {
	uint32_t h[8];
	uint64_t length;
	uint8_t block[64];
};

static const uint32_t K[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static void sha_begin(struct sha256 *s)
{
	static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	memcpy(s->h, start, sizeof start);
	s->length = 0;
}

static inline uint32_t ror(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha_block(uint32_t *h, const uint8_t *p)
{
	uint32_t w[64], v[8];
	for (int i = 0; i < 16; i++) {
		uint32_t x;
		memcpy(&x, p + 4 * i, 4);
		w[i] = __builtin_bswap32(x);
	}
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(v, h, sizeof v);
#define ROUND(a, b, c, d, e, f, g, h, i) \
	do { \
		uint32_t t = h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + (g ^ (e & (f ^ g))) + K[i] + w[i]; \
		d += t; \
		h = t + (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) | (c & (a | b))); \
	} while (0)
	for (int i = 0; i < 64; i += 8) {
		ROUND(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], i);
		ROUND(v[7], v[0], v[1], v[2], v[3], v[4], v[5], v[6], i + 1);
		ROUND(v[6], v[7], v[0], v[1], v[2], v[3], v[4], v[5], i + 2);
		ROUND(v[5], v[6], v[7], v[0], v[1], v[2], v[3], v[4], i + 3);
		ROUND(v[4], v[5], v[6], v[7], v[0], v[1], v[2], v[3], i + 4);
		ROUND(v[3], v[4], v[5], v[6], v[7], v[0], v[1], v[2], i + 5);
		ROUND(v[2], v[3], v[4], v[5], v[6], v[7], v[0], v[1], i + 6);
		ROUND(v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[0], i + 7);
	}
	for (int i = 0; i < 8; i++)
		h[i] += v[i];
}

static void sha_add(struct sha256 *s, const void *data, size_t length)
{
	const uint8_t *p = data;
	size_t held = s->length % 64;
	s->length += length;
	if (held) {
		size_t take = 64 - held < length ? 64 - held : length;
		memcpy(s->block + held, p, take);
		p += take, length -= take;
		if (held + take < 64)
			return;
		sha_block(s->h, s->block);
	}
	for (; length >= 64; length -= 64, p += 64)
		sha_block(s->h, p);
	memcpy(s->block, p, length);
}

static void sha_hex(struct sha256 *s, char hex[65])
{
	uint64_t bits = s->length * 8;
	uint8_t end[72] = {0x80};
	size_t padding = 64 - (s->length + 8) % 64;
	for (int i = 0; i < 8; i++)
		end[padding + i] = bits >> (56 - 8 * i);
	sha_add(s, end, padding + 8);
	for (int i = 0; i < 8; i++)
		snprintf(hex + 8 * i, 9, "%08x", s->h[i]);
}

// --- the stream

static int port = -1;
static uint8_t outgoing[2 * MAX_FRAME];
static size_t outgoing_length;

static void flush(void)
{
	size_t done = 0;
	while (done < outgoing_length) {
		ssize_t n = write(port, outgoing + done, outgoing_length - done);
		if (n > 0) {
			done += n;
		} else if (n < 0 && errno == EAGAIN) {
			poll(&(struct pollfd){port, POLLOUT, 0}, 1, 1000);
		} else if (n < 0 && errno != EINTR) {
			break; // nobody is there; reading says so too
		}
	}
	outgoing_length = 0;
}

static void send_frame(uint32_t id, const char *kind, const void *payload, size_t length)
{
	if (outgoing_length + MAX_HEADER + length > sizeof outgoing)
		flush();
	char fields[MAX_HEADER];
	int n = snprintf(fields, sizeof fields, "%x %s %zu", id, kind, length);
	uint32_t crc = crc32(crc32(0, fields, n), payload, length);
	outgoing_length += sprintf((char *)outgoing + outgoing_length, "%s%s %08x\n", MARK, fields, crc);
	if (length)
		memcpy(outgoing + outgoing_length, payload, length);
	outgoing_length += length;
}

static void send_text(uint32_t id, const char *kind, const char *text) { send_frame(id, kind, text, strlen(text)); }

static void send_error(uint32_t id, const char *what, int error)
{
	char text[MAX_PATH + 128];
	snprintf(text, sizeof text, "%s: %s", what, strerror(error));
	send_text(id, "error", text);
}

// --- jobs: at most one

static struct {
	uint32_t id;
	pid_t pid; // 0: none
	int out, err;
	int64_t ends_at; // ms on the monotonic clock; 0: never
	int64_t began;
	bool late;
	bool exited;
	int status;
	uint64_t limit, said[2];
} job = {.out = -1, .err = -1};

static struct {
	uint32_t id;
	int fd; // -1: none
	mode_t mode;
	struct sha256 sha;
	char path[MAX_PATH], draft[MAX_PATH + 32];
} put = {.fd = -1};

static struct {
	uint32_t id;
	int fd; // -1: none
	struct sha256 sha;
	uint64_t limit, sent, size; // of its bytes: as many as are taken, those that went, as many as it had
} get = {.fd = -1};

static void drop(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void job_kill(void)
{
	if (job.pid)
		kill(-job.pid, SIGKILL);
}

static void job_forget(void)
{
	if (job.pid && !job.exited) {
		job_kill();
		waitpid(job.pid, NULL, 0);
	}
	job.pid = 0;
	drop(&job.out);
	drop(&job.err);
}

static void put_forget(void)
{
	if (put.fd >= 0)
		unlink(put.draft);
	drop(&put.fd);
}

static void forget_all(void)
{
	job_forget();
	put_forget();
	drop(&get.fd);
}

// Bytes that a command said: sent up to the limit, then only counted.
static bool job_take(int *fd, int stream)
{
	static uint8_t data[CHUNK];
	if (*fd < 0)
		return false;
	ssize_t n = read(*fd, data, sizeof data);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		drop(fd);
		return false;
	}
	uint64_t room = job.limit > job.said[stream] ? job.limit - job.said[stream] : 0;
	if (room)
		send_frame(job.id, stream ? "err" : "out", data, (uint64_t)n < room ? (size_t)n : room);
	job.said[stream] += n;
	return true;
}

// The beginning of a file of /proc; its length, 0 if there is none.
static size_t read_start(const char *path, char *to, size_t room)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = file < 0 ? -1 : read(file, to, room - 1);
	drop(&file);
	to[n > 0 ? n : 0] = 0;
	return n > 0 ? n : 0;
}

// What the command's processes are at, a line each: PID STATE WHERE WORDS.
static void job_tell_state(void)
{
	static char text[MAX_TOLD * (MAX_WORDS + 100)];
	size_t length = 0;
	int told = 0;
	int64_t until = now_ms() + LOOK_MS;
	DIR *all = opendir("/proc");
	for (struct dirent *entry; all && told < MAX_TOLD && now_ms() < until && (entry = readdir(all));) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		char path[300], stat[512], where[64], words[MAX_WORDS], state;
		int session;
		snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
		// "PID (NAME) STATE PARENT GROUP SESSION": the name may hold anything.
		char *name = read_start(path, stat, sizeof stat) ? strchr(stat, '(') : NULL, *end = name ? strrchr(name, ')') : NULL;
		if (!end || sscanf(end + 1, " %c %*d %*d %d", &state, &session) != 2 || session != job.pid)
			continue;
		snprintf(path, sizeof path, "/proc/%s/wchan", entry->d_name);
		if (!read_start(path, where, sizeof where) || !isalpha((unsigned char)where[0]))
			strcpy(where, "-");
		snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
		size_t n = read_start(path, words, sizeof words);
		while (n && !words[n - 1])
			n--;
		for (size_t i = 0; i < n; i++)
			if ((unsigned char)words[i] < ' ')
				words[i] = ' ';
		if (!n) { // it has ended, or never had any
			*end = 0;
			n = snprintf(words, sizeof words, "%s", name + 1);
		}
		length += snprintf(text + length, sizeof text - length, "%s %c %s %s\n", entry->d_name, state, where, words);
		told++;
	}
	if (all)
		closedir(all);
	if (length)
		send_frame(job.id, "state", text, length);
}

static void job_end(void)
{
	// What it left running may hold the pipes open and go on writing: only what a pipe can hold is still its own.
	for (int i = 0; i < 4; i++) {
		job_take(&job.out, 0);
		job_take(&job.err, 1);
	}
	int status = WIFSIGNALED(job.status) ? 128 + WTERMSIG(job.status) : WEXITSTATUS(job.status);
	char text[128];
	snprintf(text, sizeof text, "%d %s %llu %llu %lld", status, job.late ? "late" : "done", (unsigned long long)job.said[0],
	         (unsigned long long)job.said[1], (long long)(now_ms() - job.began));
	send_text(job.id, "end", text);
	job_forget();
}

static void job_start(uint32_t id, char *payload)
{
	if (job.pid) {
		send_text(id, "error", "busy: a command is running");
		return;
	}
	// "MILLISECONDS LIMIT\nCOMMAND"
	char *end = payload;
	errno = 0;
	unsigned long long limit_ms = strtoull(payload, &end, 10), limit = 0;
	bool good = end != payload && *end == ' ';
	if (good) {
		char *second = end + 1;
		limit = strtoull(second, &end, 10);
		good = end != second && *end == '\n' && !errno && limit_ms < 1ULL << 40;
	}
	if (!good) {
		send_text(id, "error", "exec wants: MILLISECONDS LIMIT, a line end, the command");
		return;
	}
	int out[2], err[2];
	if (pipe2(out, O_CLOEXEC) < 0) {
		send_error(id, "pipe", errno);
		return;
	}
	if (pipe2(err, O_CLOEXEC) < 0) {
		send_error(id, "pipe", errno);
		close(out[0]), close(out[1]);
		return;
	}
	flush();
	pid_t pid = fork();
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		signal(SIGPIPE, SIG_DFL);
		setsid();
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
		if (file >= 0)
			(void)!write(file, "0", 1);
		int nothing = open("/dev/null", O_RDONLY);
		if (nothing >= 0)
			dup2(nothing, 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		const char *home = getenv("HOME");
		if (home)
			(void)!chdir(home);
		execl("/bin/sh", "sh", "-c", end + 1, (char *)NULL);
		dprintf(2, "/bin/sh: %s\n", strerror(errno));
		_exit(127);
	}
	int failed = pid < 0 ? errno : 0;
	close(out[1]), close(err[1]);
	if (failed) {
		close(out[0]), close(err[0]);
		send_error(id, "fork", failed);
		return;
	}
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	job.id = id;
	job.pid = pid;
	job.out = out[0];
	job.err = err[0];
	job.began = now_ms();
	job.ends_at = limit_ms ? job.began + (int64_t)limit_ms : 0;
	job.late = job.exited = false;
	job.limit = limit;
	job.said[0] = job.said[1] = 0;
}

// --- files

static void put_start(uint32_t id, char *payload)
{
	put_forget();
	char *end = payload;
	unsigned long mode = strtoul(payload, &end, 8);
	if (end == payload || *end != '\n' || mode > 07777 || !end[1] || strlen(end + 1) >= MAX_PATH) {
		send_text(id, "error", "put wants: MODE, a line end, the path");
		return;
	}
	strcpy(put.path, end + 1);
	snprintf(put.draft, sizeof put.draft, "%s.labctl-%d", put.path, getpid());
	put.fd = open(put.draft, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (put.fd < 0) {
		send_error(id, put.path, errno);
		return;
	}
	put.id = id;
	put.mode = mode;
	sha_begin(&put.sha);
	send_frame(id, "ready", "", 0);
}

static void put_fail(const char *what, int error)
{
	send_error(put.id, what, error);
	put_forget();
}

static void put_data(uint32_t id, const uint8_t *data, size_t length)
{
	if (put.fd < 0 || put.id != id)
		return; // of one that has failed: the host has not read of it yet
	sha_add(&put.sha, data, length);
	while (length) {
		ssize_t n = write(put.fd, data, length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			put_fail(put.path, n < 0 ? errno : EIO);
			return;
		}
		data += n, length -= n;
	}
}

static void put_end(uint32_t id, const char *digest)
{
	if (put.fd < 0 || put.id != id)
		return;
	char hex[65];
	sha_hex(&put.sha, hex);
	if (strcmp(hex, digest)) {
		send_text(id, "error", "the digest is not that of what arrived");
		put_forget();
		return;
	}
	// A file system may say only at the end that there is no room.
	if (fchmod(put.fd, put.mode) < 0 || close(put.fd) < 0) {
		put_fail(put.path, errno);
		return;
	}
	put.fd = -1;
	if (rename(put.draft, put.path) < 0) {
		int error = errno;
		unlink(put.draft);
		send_error(id, put.path, error);
		return;
	}
	send_text(id, "done", hex);
}

static void get_start(uint32_t id, char *payload)
{
	drop(&get.fd);
	char *end = payload;
	unsigned long long limit = strtoull(payload, &end, 10);
	if (end == payload || *end != '\n' || !end[1]) {
		send_text(id, "error", "get wants: LIMIT, a line end, the path");
		return;
	}
	get.fd = open(end + 1, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat status;
	if (get.fd < 0 || fstat(get.fd, &status) < 0) {
		send_error(id, end + 1, errno);
		drop(&get.fd);
		return;
	}
	char why[128] = "";
	if (!S_ISREG(status.st_mode))
		snprintf(why, sizeof why, S_ISDIR(status.st_mode) ? "it is a folder" : "it is no regular file: have a command read it");
	else if (status.st_size > 0 && (uint64_t)status.st_size > limit)
		snprintf(why, sizeof why, "it has %lld bytes, more than the %llu that are taken", (long long)status.st_size, limit);
	if (*why) {
		send_text(id, "error", why);
		drop(&get.fd);
		return;
	}
	get.id = id;
	get.limit = limit;
	get.sent = 0;
	get.size = status.st_size;
	sha_begin(&get.sha);
}

static void get_more(void)
{
	static uint8_t data[CHUNK];
	struct stat now;
	ssize_t n = read(get.fd, data, sizeof data);
	if (n < 0 && errno == EINTR)
		return;
	if (n < 0) {
		send_error(get.id, "read", errno);
		drop(&get.fd);
	} else if (n == 0 && get.sent < get.size && !fstat(get.fd, &now) && (uint64_t)now.st_size < get.size) { // sysfs says 4096 of all of its files
		char why[128];
		snprintf(why, sizeof why, "it became shorter while it was read: %llu of %llu bytes", (unsigned long long)get.sent, (unsigned long long)get.size);
		send_text(get.id, "error", why);
		drop(&get.fd);
	} else if (n == 0) {
		char hex[65];
		sha_hex(&get.sha, hex);
		send_text(get.id, "done", hex);
		drop(&get.fd);
	} else if ((uint64_t)n > get.limit - get.sent) {
		send_text(get.id, "error", "it has more bytes than are taken");
		drop(&get.fd);
	} else {
		get.sent += n;
		sha_add(&get.sha, data, n);
		send_frame(get.id, "data", data, n);
	}
}

// --- the machine

static void set_clock(uint32_t id, const char *payload)
{
	char *end;
	errno = 0;
	long long ns = strtoll(payload, &end, 10);
	if (end == payload || *end || errno || ns < 0) {
		send_text(id, "error", "clock wants: NANOSECONDS since 1970");
		return;
	}
	struct timespec t = {ns / 1000000000, ns % 1000000000};
	if (clock_settime(CLOCK_REALTIME, &t) < 0)
		send_error(id, "clock", errno);
	else
		send_frame(id, "done", "", 0);
}

static void reseed(uint32_t id, const uint8_t *payload, size_t length)
{
	struct {
		struct rand_pool_info head;
		uint8_t bytes[512];
	} given = {.head = {.entropy_count = 8 * length, .buf_size = length}};
	if (length < 16 || length > sizeof given.bytes) {
		send_text(id, "error", "reseed wants 16 to 512 bytes");
		return;
	}
	memcpy(given.head.buf, payload, length);
	int random = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	// Mixed in, and the generator that had its state from before seeded anew with it.
	if (random < 0 || ioctl(random, RNDADDENTROPY, &given.head) < 0 || ioctl(random, RNDRESEEDCRNG) < 0)
		send_error(id, "/dev/urandom", errno);
	else
		send_frame(id, "done", "", 0);
	drop(&random);
}

static void say_hello(void)
{
	char text[64];
	snprintf(text, sizeof text, "%d %d", VERSION, getpid());
	send_text(0, "hello", text);
}

// `payload` ends with a NUL of ours.
static void obey(uint32_t id, const char *kind, uint8_t *payload, size_t length)
{
	bool is_text = !memchr(payload, 0, length);
	char *text = (char *)payload;
	if (!strcmp(kind, "ping")) {
		send_frame(id, "pong", payload, length);
	} else if (!strcmp(kind, "sync")) {
		forget_all();
		send_frame(id, "synced", payload, length);
	} else if (!strcmp(kind, "data")) {
		put_data(id, payload, length);
	} else if (!strcmp(kind, "reseed")) {
		reseed(id, payload, length);
	} else if (!is_text) {
		send_text(id, "error", "a NUL where there is to be text");
	} else if (!strcmp(kind, "exec")) {
		job_start(id, text);
	} else if (!strcmp(kind, "kill")) {
		job_kill();
	} else if (!strcmp(kind, "put")) {
		put_start(id, text);
	} else if (!strcmp(kind, "close")) {
		put_end(id, text);
	} else if (!strcmp(kind, "get")) {
		get_start(id, text);
	} else if (!strcmp(kind, "clock")) {
		set_clock(id, text);
	} else {
		send_text(id, "error", "no such request");
	}
}

// --- frames

static uint8_t incoming[MAX_FRAME + 1]; // and a NUL behind a payload
static size_t incoming_length;

static int hex_digit(int c) { return isdigit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

// What the header at `p` says: its length; 0 if its end has not come; -1 if it is none.
static int parse_header(const uint8_t *p, size_t length, uint32_t *id, char kind[9], size_t *size, uint32_t *crc)
{
	size_t i = MARK_LENGTH, digits = 0;
#define NEXT(c) \
	do { \
		if (i == length) \
			return 0; \
		c = p[i++]; \
	} while (0)
	int c;
	*id = *crc = 0, *size = 0;
	for (;; digits++) {
		NEXT(c);
		if (c == ' ' && digits)
			break;
		if (hex_digit(c) < 0 || digits == 8)
			return -1;
		*id = *id << 4 | hex_digit(c);
	}
	for (digits = 0;; digits++) {
		NEXT(c);
		if (c == ' ' && digits)
			break;
		if (c < 'a' || c > 'z' || digits == 8)
			return -1;
		kind[digits] = c;
	}
	kind[digits] = 0;
	for (digits = 0;; digits++) {
		NEXT(c);
		if (c == ' ' && digits)
			break;
		if (!isdigit(c) || digits == 5)
			return -1;
		*size = *size * 10 + c - '0';
	}
	if (*size > MAX_PAYLOAD)
		return -1;
	for (digits = 0; digits < 8; digits++) {
		NEXT(c);
		if (hex_digit(c) < 0)
			return -1;
		*crc = *crc << 4 | hex_digit(c);
	}
	NEXT(c);
	return c == '\n' ? (int)i : -1;
}

static void discard(size_t n)
{
	incoming_length -= n;
	memmove(incoming, incoming + n, incoming_length);
}

// Everything that is whole. `stalled`: the rest of a frame that has begun will not come.
static void take_frames(bool stalled)
{
	size_t at = 0;
	while (at < incoming_length) {
		uint8_t *mark = memmem(incoming + at, incoming_length - at, MARK, MARK_LENGTH);
		if (!mark) {
			size_t tail = MARK_LENGTH - 1; // it may be the start of one
			at = incoming_length - at > tail ? incoming_length - tail : at;
			break;
		}
		at = mark - incoming;
		uint32_t id, crc;
		char kind[9];
		size_t size;
		int header = parse_header(mark, incoming_length - at, &id, kind, &size, &crc);
		if (header < 0 || (stalled && (header == 0 || at + header + size > incoming_length))) {
			at += MARK_LENGTH;
			continue;
		}
		if (header == 0 || at + header + size > incoming_length)
			break;
		size_t fields = header - MARK_LENGTH - 10; // without the CRC, the blank before it and the line end
		if (crc32(crc32(0, mark + MARK_LENGTH, fields), mark + header, size) != crc) {
			at += MARK_LENGTH;
			continue;
		}
		uint8_t *end = mark + header + size, kept = *end;
		*end = 0;
		obey(id, kind, mark + header, size);
		*end = kept;
		at += header + size;
	}
	if (at)
		discard(at);
	if (incoming_length == MAX_FRAME)
		discard(MARK_LENGTH); // cannot be: a frame fits
}

// --- the loop

// Until the stream ends.
static void serve(int children)
{
	incoming_length = outgoing_length = 0;
	int64_t heard = now_ms();
	say_hello();
	for (;;) {
		flush();
		int64_t now = now_ms();
		int wait = -1;
		if (incoming_length)
			wait = heard + STALL_MS > now ? heard + STALL_MS - now : 0;
		if (job.pid && job.ends_at && !job.late) {
			int64_t left = job.ends_at > now ? job.ends_at - now : 0;
			wait = wait < 0 || left < wait ? (int)(left < 1 << 30 ? left : 1 << 30) : wait;
		}
		if (get.fd >= 0)
			wait = 0;
		struct pollfd polled[4] = {{port, POLLIN, 0}, {children, POLLIN, 0}, {job.out, POLLIN, 0}, {job.err, POLLIN, 0}};
		if (poll(polled, 4, wait) < 0 && errno != EINTR)
			return;
		if (polled[0].revents) {
			ssize_t n = read(port, incoming + incoming_length, MAX_FRAME - incoming_length);
			if (n > 0) {
				incoming_length += n;
				heard = now_ms();
				take_frames(false);
			} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
				return;
			}
		} else if (incoming_length && now_ms() >= heard + STALL_MS) {
			take_frames(true);
			heard = now_ms();
		}
		job_take(&job.out, 0);
		job_take(&job.err, 1);
		if (polled[1].revents) {
			struct signalfd_siginfo told;
			(void)!read(children, &told, sizeof told);
			if (job.pid && waitpid(job.pid, &job.status, WNOHANG) == job.pid) {
				job.exited = true;
				job_end();
			}
		}
		if (job.pid && job.ends_at && !job.late && now_ms() >= job.ends_at) {
			job.late = true;
			job_tell_state();
			job_kill();
		}
		if (get.fd >= 0)
			get_more();
	}
}

static int find_port(const char *name, char *device, size_t room)
{
	DIR *folder = opendir("/sys/class/virtio-ports");
	if (!folder)
		return -1;
	int found = -1;
	for (struct dirent *entry; found < 0 && (entry = readdir(folder));) {
		char path[600], text[256];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		int file = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = file >= 0 ? read(file, text, sizeof text - 1) : -1;
		drop(&file);
		if (n < 0)
			continue;
		text[n] = 0;
		text[strcspn(text, "\n")] = 0;
		if (!strcmp(text, name)) {
			snprintf(device, room, "/dev/%s", entry->d_name);
			found = 0;
		}
	}
	closedir(folder);
	return found;
}

static int open_virtio(const char *name)
{
	char device[300];
	for (int64_t end = now_ms() + PORT_WAIT_MS; now_ms() < end; usleep(5000)) {
		if (find_port(name, device, sizeof device) == 0) {
			int fd = open(device, O_RDWR | O_CLOEXEC);
			if (fd >= 0)
				return fd;
		}
	}
	dprintf(2, "labctl-agent: no virtio port is named %s\n", name);
	exit(NO_PORT);
}

static int open_serial(const char *device)
{
	int fd = open(device, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios raw;
	if (fd < 0 || tcgetattr(fd, &raw) < 0) {
		dprintf(2, "labctl-agent: %s: %s\n", device, strerror(errno));
		exit(NO_PORT);
	}
	cfmakeraw(&raw);
	cfsetspeed(&raw, B115200);
	raw.c_cflag |= CLOCAL;
	tcsetattr(fd, TCSAFLUSH, &raw);
	return fd;
}

static int open_tcp(const char *number)
{
	static int listening = -1;
	int one = 1;
	if (listening < 0) {
		struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(atoi(number))};
		listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(listening, (void *)&any, sizeof any) < 0 || listen(listening, 1) < 0) {
			dprintf(2, "labctl-agent: port %s: %s\n", number, strerror(errno));
			exit(NO_PORT);
		}
	}
	int fd;
	while ((fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC)) < 0)
		usleep(10000);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
	return fd;
}

static void load_modules(const char *folder)
{
	struct dirent **names;
	int count = scandir(folder, &names, NULL, alphasort);
	for (int i = 0; i < count; i++) {
		char path[MAX_PATH];
		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
		int file = open(path, O_RDONLY | O_CLOEXEC);
		if (file >= 0 && syscall(SYS_finit_module, file, "", 0) < 0 && errno != EEXIST)
			dprintf(2, "labctl-agent: %s: %s\n", path, strerror(errno));
		drop(&file);
	}
}

static void work(const char *where)
{
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	signal(SIGPIPE, SIG_IGN);
	int children = signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK);
	crc_begin();
	const char *rest = strchr(where, ':') + 1;
	for (;;) {
		switch (where[0]) {
		case 'v': port = open_virtio(rest); break;
		case 's': port = open_serial(rest); break;
		case 't': port = open_tcp(rest); break;
		default: port = atoi(rest); fcntl(port, F_SETFD, FD_CLOEXEC);
		}
		serve(children);
		forget_all();
		drop(&port);
		if (where[0] == 'f')
			exit(0);
		usleep(20000); // a port that nobody holds on the host's side reads as ended
	}
}

int main(int count, char **words)
{
	const char *modules = NULL, *where = NULL;
	bool stay = false;
	for (int i = 1; i < count; i++) {
		if (!strcmp(words[i], "--modules") && i + 1 < count)
			modules = words[++i];
		else if (!strcmp(words[i], "--stay"))
			stay = true; // one process, in the foreground
		else
			where = words[i];
	}
	if (!where || (strncmp(where, "virtio:", 7) && strncmp(where, "serial:", 7) && strncmp(where, "tcp:", 4) && strncmp(where, "fd:", 3))) {
		dprintf(2, "usage: agent [--modules FOLDER] [--stay] virtio:NAME | serial:DEVICE | tcp:PORT | fd:NUMBER\n");
		return 2;
	}
	if (modules)
		load_modules(modules);
	if (stay)
		work(where);
	if (fork())
		return 0;
	setsid();
	int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (file >= 0)
		(void)!write(file, "-1000", 5);
	drop(&file);
	for (;;) {
		pid_t child = fork();
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			work(where);
		}
		int status;
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
		if (child < 0 || (WIFEXITED(status) && WEXITSTATUS(status) == NO_PORT))
			return NO_PORT;
		usleep(10000);
	}
}
