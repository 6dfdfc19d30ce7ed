/* density: how many virtual machines a machine carries. What runners of all kinds of VM share; see density.c. */
#ifndef DENSITY_H
#define DENSITY_H

#include <stdint.h>
#include <sys/types.h>

/* One VM. Lies in memory that its process, where it has one, shares with the runner. Times are CLOCK_MONOTONIC's, in seconds. */
struct vm {
	int number;		/* from 1 */
	volatile double ready;	/* 0 until it said so */
	volatile double beat;	/* when it beat last; at first when it was ready */
	volatile double gap;	/* the longest time between two beats since that was last asked for */
	volatile int matched;	/* bytes of its announcement that were heard */
	volatile pid_t process; /* 0: it has none, or it was not started, or it has ended */
	int console;		/* read by the runner; -1 if the VM's own process hears it */
	char why[120];		/* what went wrong */
};

struct settings {
	int vms, memory_mib, every;
	double beat, late, ready, hold;
	long reserve_mib;
	const char *kernel, *words;
};

/* What is particular to one kind of VM. Each returns 0, or -1 with the reason in the VM's `why` (`prepare`: has said so). */
struct runner {
	const char *name;
	int (*prepare)(const struct settings *settings);
	int (*start)(struct vm *vm, const struct settings *settings, const char *command_line);
	void (*stop)(struct vm *vm);
	double (*available)(void);	  /* bytes that further VMs can have */
	int dear;			  /* to ask for that takes long: it is asked at checks, and when little is left */
	void (*explain)(struct vm *vm); /* may be absent: fills `why` of a VM whose process has ended */
	double (*busy)(void);		  /* may be absent, where Linux knows: seconds that a CPU of the machine was not idle so far */
};
extern const struct runner runner;

double now(void);
void heard(struct vm *vm, const char *bytes, ssize_t length);
int failed(struct vm *vm, const char *what); /* fills `why` with errno's words; returns -1 */
double memory_available(void);
void attend(double seconds); /* to the consoles that the runner reads, while something else is waited for */
void kill_process(struct vm *vm);

#endif
