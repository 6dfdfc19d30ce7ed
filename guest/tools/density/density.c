/* density-RUNNER KERNEL [OPTION VALUE]...: starts virtual machines one after another until no more can be carried, and says how it went.
 *
 * KERNEL is the tiny guest, which beats by a timer of its own. Each VM must be ready within a time; after every few of them all must have beaten
 * not long ago, and the machine must have some memory left. When that ends, or enough VMs run, they are held for a while and the healthy are
 * counted: those that go on beating without a pause.
 *
 *   --vms N          stop at so many (200)
 *   --memory MIB     of each VM (4); all of it is touched
 *   --beat SECONDS   between two beats of a VM (1)
 *   --late SECONDS   without a beat: the VM is not healthy (3 beats)
 *   --ready SECONDS  from its start a VM must be ready (10)
 *   --every N        VMs all are looked at (10)
 *   --reserve MIB    of memory that must stay available (32)
 *   --hold SECONDS   in which the healthy are counted again at the end (5, and 2 beats at least)
 *   --words WORDS    more of the guest's command line
 *   --plant WHAT=N   a fault with the N-th VM: nobeat (it never beats), kill and hang (of the runner), panic (of the machine)
 *
 * It says on the console, by the kernel's log so that each line is there at once and whole, and on its standard output:
 *
 *   density: begin runner=NAME vms=N memory=BYTES beat=S late=S ready=S reserve=BYTES available=BYTES
 *   density: vm N start=S                         from its start to its word that it is ready
 *   density: check N gap=S pss=BYTES available=BYTES cpu=SHARE
 *                   while N ran: the 99th percentile over the VMs of each one's longest pause since the check before; proportional set size of
 *                   a VM's process, the mean of at most 8 (0: it has none); memory available; share of the CPUs' time that was not idle
 *   density: end limit=WORD healthy=N started=N seconds=S why="WORDS"
 *                   limit: target, start-failed, start-late, heartbeat-missed, vm-died, memory-reserve
 *   density: lost why="WORDS"                     instead of that: the runner itself ended
 *
 * The VMs are ended with the runner. The kernel is to kill them, and not the runner, when memory is short (oom_score_adj). Exit status: 0 with the
 * line `end`, 1 lost, 2 called wrongly or refused.
 */
#define _GNU_SOURCE
#include "density.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096
#define PSS_OF 8

static const char ready_words[] = "tiny: ready\n";
static struct settings settings = {.vms = 200, .memory_mib = 4, .every = 10, .beat = 1, .ready = 10, .hold = 5, .reserve_mib = 32, .words = ""};
static struct {
	const char *what;
	int at;
} plant;
static struct vm *vms;
static int started, log_file = -1;

double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	char line[400] = "<4>density: ";
	va_list words;
	va_start(words, format);
	vsnprintf(line + strlen(line), sizeof line - strlen(line) - 1, format, words);
	va_end(words);
	strcat(line, "\n");
	if (log_file >= 0 && write(log_file, line, strlen(line)) < 0)
		perror("/dev/kmsg");
	fputs(line + 3, stdout);
	fflush(stdout);
}

static int refused(const char *what)
{
	fprintf(stderr, "density: %s: %s\n", what, strerror(errno));
	return 2;
}

int failed(struct vm *vm, const char *what)
{
	snprintf(vm->why, sizeof vm->why, "%s: %s", what, strerror(errno));
	return -1;
}

static void put(const char *file, const char *text)
{
	int open_file = open(file, O_WRONLY | O_CLOEXEC);
	if (open_file < 0 || write(open_file, text, strlen(text)) < 0)
		perror(file);
	if (open_file >= 0)
		close(open_file);
}

/* What a VM said on its console: its announcement, then a byte for each beat. */
void heard(struct vm *vm, const char *bytes, ssize_t length)
{
	for (ssize_t n = 0; n < length; n++) {
		double at = now();
		if (!vm->ready) {
			vm->matched = bytes[n] == ready_words[vm->matched] ? vm->matched + 1 : bytes[n] == ready_words[0];
			if (!ready_words[vm->matched]) {
				vm->beat = at;
				vm->ready = at;
			}
		} else if (bytes[n] == '.') {
			if (at - vm->beat > vm->gap)
				vm->gap = at - vm->beat;
			vm->beat = at;
		}
	}
}

/* For so many seconds, or until something happened: consoles are read that are the runner's to read. */
void attend(double seconds)
{
	static struct pollfd polled[MOST];
	double until = now() + (seconds > 0 ? seconds : 0), left;
	int count = 0, whose[MOST];
	for (int n = 0; n < started; n++)
		if (vms[n].console >= 0) {
			polled[count] = (struct pollfd){.fd = vms[n].console, .events = POLLIN};
			whose[count++] = n;
		}
	if (!count) {
		usleep(seconds > 0 ? seconds * 1e6 : 0);
		return;
	}
	do {
		left = until - now();
		int there = poll(polled, count, left > 0 ? left * 1000 + 1 : 0);
		if (there < 0 && errno != EINTR)
			return;
		for (int n = 0; there > 0 && n < count; n++) {
			char bytes[256];
			ssize_t length;
			if (!polled[n].revents)
				continue;
			if ((length = read(polled[n].fd, bytes, sizeof bytes)) > 0)
				heard(&vms[whose[n]], bytes, length);
			else if (length == 0 || (errno != EAGAIN && errno != EINTR))
				polled[n].fd = -1; /* it has ended; its beats stop too */
		}
	} while (now() < until && !(started && !vms[started - 1].ready));
}

static double file_number(const char *file, const char *key)
{
	char line[200];
	double value = 0;
	size_t length = strlen(key);
	FILE *open_file = fopen(file, "re");
	if (!open_file)
		return 0;
	while (fgets(line, sizeof line, open_file))
		if (!strncmp(line, key, length)) {
			value = atof(line + length);
			break;
		}
	fclose(open_file);
	return value;
}

double memory_available(void) { return file_number("/proc/meminfo", "MemAvailable:") * 1024; }

static double pss(void)
{
	double sum = 0;
	int step = started > PSS_OF ? started / PSS_OF : 1, count = 0;
	for (int n = started - 1; n >= 0 && count < PSS_OF; n -= step) {
		char file[64];
		if (!vms[n].process)
			continue;
		snprintf(file, sizeof file, "/proc/%d/smaps_rollup", vms[n].process);
		double found = file_number(file, "Pss:") * 1024;
		if (found > 0)
			sum += found, count++;
	}
	return count ? sum / count : 0;
}

/* Since it was asked before. */
static double cpu_share(void)
{
	static double all_before, idle_before;
	double field[8] = {0}, all = 0, idle, share;
	if (runner.busy) {
		all = now(), idle = all - runner.busy();
		share = all > all_before ? 1 - (idle - idle_before) / (all - all_before) : 0;
		all_before = all, idle_before = idle;
		return share < 0 ? 0 : share > 1 ? 1 : share;
	}
	FILE *stat = fopen("/proc/stat", "re");
	if (!stat)
		return 0;
	int found = fscanf(stat, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", field, field + 1, field + 2, field + 3, field + 4, field + 5, field + 6,
			   field + 7);
	fclose(stat);
	for (int n = 0; n < found; n++)
		all += field[n];
	idle = field[3] + field[4];
	share = all > all_before ? 1 - (idle - idle_before) / (all - all_before) : 0;
	all_before = all, idle_before = idle;
	return share;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* Says how it goes, and returns how many of them beat in time; `why` is of the one that did not for longest. Longest pauses are counted anew
 * from then on. */
static int check(char *why, size_t room)
{
	static double gaps[MOST];
	int healthy = 0;
	double at = now(), longest = settings.late;
	for (int n = 0; n < started; n++) {
		double open_gap = at - vms[n].beat;
		gaps[n] = vms[n].gap > open_gap ? vms[n].gap : open_gap;
		if (vms[n].process < 0 || gaps[n] <= longest)
			continue;
		longest = gaps[n];
		snprintf(why, room, "VM %d: %.1f s without a beat", vms[n].number, longest);
	}
	for (int n = 0; n < started; n++) {
		healthy += vms[n].process >= 0 && gaps[n] <= settings.late;
		vms[n].gap = 0;
	}
	qsort(gaps, started, sizeof *gaps, by_size);
	say("check %d gap=%.6f pss=%.0f available=%.0f cpu=%.4f", started, started ? gaps[(started * 99 + 99) / 100 - 1] : 0, pss(),
	    runner.available(), cpu_share());
	return healthy;
}

/* The first VM whose process has ended, with the reason; NULL if all live. */
static struct vm *dead(void)
{
	int status;
	pid_t process;
	struct vm *found = NULL;
	while ((process = waitpid(-1, &status, WNOHANG)) > 0)
		for (int n = 0; n <= started && n < settings.vms; n++)
			if (vms[n].process == process) {
				vms[n].process = -1;
				if (!*vms[n].why && WIFSIGNALED(status))
					snprintf(vms[n].why, sizeof vms[n].why, "killed by signal %d%s", WTERMSIG(status),
						 WTERMSIG(status) == SIGKILL ? ": out of memory?" : "");
				else if (!*vms[n].why)
					snprintf(vms[n].why, sizeof vms[n].why, "ended with status %d", WEXITSTATUS(status));
				if (runner.explain)
					runner.explain(&vms[n]);
				found = &vms[n];
			}
	return found;
}

void kill_process(struct vm *vm)
{
	if (vm->process > 0) {
		kill(vm->process, SIGKILL);
		waitpid(vm->process, NULL, 0);
	}
	vm->process = -1;
}

/* Whether memory is left for one more. */
static int room_left(void)
{
	static double known;
	double reserve = settings.reserve_mib * 1048576.0;
	if (!runner.dear || started % settings.every == 0 || known < 4 * reserve)
		known = runner.available();
	return known >= reserve;
}

static int planted(const char *what, int number) { return plant.what && plant.at == number && !strcmp(plant.what, what); }

static const char *fill(char *why, size_t room)
{
	struct vm *vm;
	while (started < settings.vms) {
		vm = &vms[started];
		if (!room_left())
			return "memory-reserve";
		if (planted("kill", vm->number))
			raise(SIGKILL);
		if (planted("hang", vm->number))
			raise(SIGSTOP);
		if (planted("panic", vm->number))
			put("/proc/sysrq-trigger", "c");
		char words[300];
		snprintf(words, sizeof words, "terse touch every=%.0f %s%s", settings.beat * 1000, planted("nobeat", vm->number) ? "nobeat " : "",
			 settings.words);
		double began = now(), limit = began + settings.ready;
		if (runner.start(vm, &settings, words)) {
			snprintf(why, room, "VM %d: %s", vm->number, vm->why);
			runner.stop(vm);
			return "start-failed";
		}
		started++;
		while (!vm->ready && !*vm->why && now() < limit) {
			struct vm *ended = dead();
			if (ended && ended != vm) {
				snprintf(why, room, "VM %d: %s", ended->number, ended->why);
				started -= !vm->ready;
				runner.stop(vm);
				return "vm-died";
			}
			attend(0.0005);
		}
		if (!vm->ready) {
			snprintf(why, room, "VM %d: %s", vm->number, *vm->why ? vm->why : "said nothing of being ready");
			const char *limited = *vm->why ? "start-failed" : "start-late";
			runner.stop(vm);
			started--;
			return limited;
		}
		say("vm %d start=%.6f", vm->number, vm->ready - began);
		if (started % settings.every && started != settings.vms)
			continue;
		attend(0); /* what has been said meanwhile */
		if ((vm = dead())) {
			snprintf(why, room, "VM %d: %s", vm->number, vm->why);
			return "vm-died";
		}
		if (check(why, room) < started)
			return "heartbeat-missed";
	}
	return "target";
}

static int work(void)
{
	char why[160] = "", late[160] = "";
	double began = now(), held;
	put("/proc/self/oom_score_adj", "-1000");
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || runner.prepare(&settings))
		return 2;
	cpu_share();
	say("begin runner=%s vms=%d memory=%lld beat=%.3f late=%.3f ready=%.3f reserve=%lld available=%.0f", runner.name, settings.vms,
	    settings.memory_mib * 1048576ll, settings.beat, settings.late, settings.ready, settings.reserve_mib * 1048576ll, runner.available());
	const char *limit = fill(why, sizeof why);
	for (int n = 0; n < started; n++)
		vms[n].gap = 0;
	held = settings.hold > 2 * settings.beat ? settings.hold : 2 * settings.beat;
	for (double until = now() + held; now() < until;)
		attend(until - now() < 0.2 ? until - now() : 0.2);
	struct vm *ended = dead();
	int healthy = check(late, sizeof late);
	if (ended && !*why) {
		limit = "vm-died";
		snprintf(why, sizeof why, "VM %d: %s", ended->number, ended->why);
	} else if (healthy < started && !*why) {
		limit = "heartbeat-missed";
		strcpy(why, late);
	}
	for (char *at = why; *at; at++)
		if (*at < ' ' || *at > '~' || *at == '"')
			*at = '?';
	say("end limit=%s healthy=%d started=%d seconds=%.3f why=\"%s\"", limit, healthy, started, now() - began, why);
	for (int n = started - 1; n >= 0; n--)
		if (vms[n].process > 0)
			kill(vms[n].process, SIGKILL);
	for (int n = started - 1; n >= 0; n--)
		runner.stop(&vms[n]);
	return 0;
}

static int options(int argc, char **argv)
{
	if (argc < 2 || argc % 2)
		return -1;
	settings.kernel = argv[1];
	for (int n = 2; n < argc; n += 2) {
		char *value = argv[n + 1], *end;
		double number = strtod(value, &end);
		int is_number = end != value && !*end && number >= 0;
		if (!strcmp(argv[n], "--words"))
			settings.words = value;
		else if (!strcmp(argv[n], "--plant") && strchr(value, '=')) {
			plant.what = strtok(value, "=");
			plant.at = atoi(value + strlen(value) + 1);
		} else if (!is_number)
			return -1;
		else if (!strcmp(argv[n], "--vms"))
			settings.vms = number;
		else if (!strcmp(argv[n], "--memory"))
			settings.memory_mib = number;
		else if (!strcmp(argv[n], "--beat"))
			settings.beat = number;
		else if (!strcmp(argv[n], "--late"))
			settings.late = number;
		else if (!strcmp(argv[n], "--ready"))
			settings.ready = number;
		else if (!strcmp(argv[n], "--every"))
			settings.every = number;
		else if (!strcmp(argv[n], "--reserve"))
			settings.reserve_mib = number;
		else if (!strcmp(argv[n], "--hold"))
			settings.hold = number;
		else
			return -1;
	}
	if (!settings.late)
		settings.late = 3 * settings.beat;
	return settings.vms >= 1 && settings.vms <= MOST && settings.memory_mib >= 2 && settings.memory_mib <= 2048 && settings.every >= 1 &&
		       settings.beat >= 0.01 && settings.beat <= 60 && settings.late > settings.beat && settings.ready > 0
		   ? 0
		   : -1;
}

int main(int argc, char **argv)
{
	if (options(argc, argv)) {
		fprintf(stderr,
			"density-%s KERNEL [--vms N] [--memory MIB] [--beat S] [--late S] [--ready S] [--every N] [--reserve MIB] [--hold S]"
			" [--words WORDS] [--plant nobeat|kill|hang|panic=N]\n"
			"1 to %d VMs of 2 to 2048 MiB, beats every 0.01 to 60 s\n",
			runner.name, MOST);
		return 2;
	}
	put("/proc/sys/kernel/printk_devkmsg", "on\n");
	if ((log_file = open("/dev/kmsg", O_WRONLY | O_CLOEXEC)) < 0)
		return refused("/dev/kmsg");
	vms = mmap(NULL, settings.vms * sizeof *vms, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vms == MAP_FAILED)
		return refused("mmap");
	for (int n = 0; n < settings.vms; n++) {
		vms[n].number = n + 1;
		vms[n].console = -1;
	}
	pid_t worker = fork();
	if (worker < 0)
		return refused("fork");
	if (!worker)
		_exit(work());
	int status;
	while (waitpid(worker, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	if (WIFSIGNALED(status))
		say("lost why=\"the runner was killed by signal %d\"", WTERMSIG(status));
	else
		say("lost why=\"the runner ended with status %d\"", WEXITSTATUS(status));
	return 1;
}
