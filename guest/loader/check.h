/* What both loaders do with a part of what arrived: say on the serial port what it is, and go on only if it is what was sent. */
#include "poly1305.h"

#define PARTS 3
extern const char names[PARTS][8];

void say(const char *text);
void stop(void) __attribute__((noreturn));
/* The line that says why nothing is booted; then nothing is. */
void give_up(const char *part, const char *why) __attribute__((noreturn));

/* The port that a kernel's command line calls its console, as fast as it says there. */
void open_serial(const char *command_line);

/* What comes behind a word; 0 if it stands nowhere. */
const char *find(const char *text, const char *word);

/* The key that our own command line names. */
void read_key(const char *own, uint8_t key[KEY]);

/* Part `number` of `names`, against the tag that our own command line has of it. */
void check(unsigned number, const uint8_t *bytes, uint32_t size, const char *own, const uint8_t key[KEY]);
