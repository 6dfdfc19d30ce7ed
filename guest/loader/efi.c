/* The same as loader.c on a machine that boots by UEFI: boots what the network gave only if it is what was sent.
 *
 * iPXE starts this as the EFI application that it is, and shows what else it fetched as files: kernel, cmdline, initrd, on the device that we
 * come from. What is checked is a copy of ours, and this copy is what boots: the firmware loads the kernel as an image from it, with the
 * command line as its options, and the kernel's EFI stub asks for the initramfs by the path that Linux has for it (Documentation/admin-guide/
 * efi-stub.rst, since 5.7). An older kernel, which says so by the version 0 of its image, reads iPXE's file by `initrd=` on its command line.
 *
 * A disk that the lab writes starts this too. The firmware gives it no options there: key and tags are in the file `sent` beside the others.
 */
#include "check.h"
#include "efi.h"

#define OWN_MAX 512
#define COMMAND_LINE_MAX 0x8000u

static const efi_guid loaded_image_guid = { 0x5b1b31a1, 0x9562, 0x11d2, { 0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b } };
static const efi_guid file_system_guid = { 0x964e5b22, 0x6459, 0x11d2, { 0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b } };
static const efi_guid device_path_guid = { 0x09576e91, 0x6d3f, 0x11d2, { 0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b } };
static const efi_guid load_file2_guid = { 0x4006c0c1, 0xfcb3, 0x403e, { 0x99, 0x6d, 0x4a, 0x6c, 0x87, 0x24, 0xe0, 0x6d } };

static struct { /* LINUX_EFI_INITRD_MEDIA_GUID, as the one node of a path */
	efi_path node;
	efi_guid guid;
	efi_path end;
} __attribute__((packed)) initrd_path = {
	{ 4, 3, sizeof(efi_path) + sizeof(efi_guid) }, { 0x5568e427, 0x68fc, 0x4f3d, { 0xac, 0x74, 0xca, 0x55, 0x52, 0x31, 0xcc, 0x68 } }, PATH_END
};
static struct { /* a place in memory, as a path: where the kernel came from */
	efi_path node;
	uint32_t type;
	uint64_t first, last;
	efi_path end;
} __attribute__((packed)) kernel_path = { { 1, 3, sizeof(efi_path) + 20 }, LOADER_DATA, 0, 0, PATH_END };

struct part { uint8_t *bytes; uint32_t size; };

static struct boot_services *boot;
static struct part parts[PARTS];

void *memcpy(void *to, const void *from, unsigned long n)
{
	void *d = to;
	unsigned long words = n / 8, rest = n % 8;
	__asm__ volatile("cld; rep movsq; mov %3, %2; rep movsb" : "+D"(d), "+S"(from), "+c"(words) : "r"(rest) : "memory");
	return to;
}

void *memset(void *to, int value, unsigned long n)
{
	void *d = to;
	__asm__ volatile("cld; rep stosb" : "+D"(d), "+c"(n) : "a"(value) : "memory");
	return to;
}

int has_long_mode(void) { return 1; }

static void __attribute__((noreturn)) refused(const char *part, const char *why, efi_status status)
{
	char words[80], *w = words;
	for (; *why; why++)
		*w++ = *why;
	*w++ = '0';
	*w++ = 'x';
	for (int shift = 60; shift >= 0; shift -= 4)
		*w++ = "0123456789abcdef"[status >> shift & 15];
	*w = 0;
	give_up(part, words);
}

/* --- what arrived ----------------------------------------------------------------------------------------------------- */

static uint8_t *room(const char *part, uint64_t bytes)
{
	uint64_t at;
	if (boot->allocate_pages(ANY_PAGES, LOADER_DATA, bytes / 4096 + 1, &at))
		give_up(part, ": does not fit into memory");
	return (uint8_t *)at;
}

/* The whole of a file, with a zero behind it; 0 if there is none of this name. */
static int read(struct file *folder, const char *name, struct part *part)
{
	uint16_t wide[8] = { 0 };
	struct file *file;
	uint64_t size = 0;
	for (int i = 0; i < 7 && name[i]; i++)
		wide[i] = (uint8_t)name[i];
	if (folder->open(folder, &file, wide, READ_ONLY, 0))
		return 0;
	if (file->set_position(file, END_OF_FILE) || file->position(file, &size) || file->set_position(file, 0))
		give_up(name, ": cannot be read");
	if (size > UINT32_MAX)
		give_up(name, ": is larger than 4 GiB");
	part->bytes = room(name, size);
	part->size = (uint32_t)size;
	for (uint64_t done = 0, some; done < size; done += some) {
		some = size - done;
		if (file->read(file, &some, part->bytes + done) || !some || some > size - done)
			give_up(name, ": cannot be read");
	}
	part->bytes[size] = 0;
	file->close(file);
	return 1;
}

/* Our own command line, as bytes: from our options, or from the file of a disk. */
static void read_own(const struct loaded_image *image, struct file *folder, char own[OWN_MAX])
{
	const uint16_t *options = image->options;
	uint32_t count = options ? image->options_size / 2 : 0, i;
	for (i = 0; i < count && i < OWN_MAX - 1 && options[i]; i++)
		own[i] = options[i] < 128 ? (char)options[i] : '?';
	own[i] = 0;
	struct part file;
	if (!find(own, " key=") && read(folder, "sent", &file) && file.size < OWN_MAX)
		memcpy(own, file.bytes, file.size + 1);
}

/* --- the kernel ------------------------------------------------------------------------------------------------------- */

static uint32_t get32(const uint8_t *at) { uint32_t value; __builtin_memcpy(&value, at, 4); return value; }

/* Where the PE header is, of a kernel that is an EFI program of this architecture. */
static uint32_t look_at(const struct part *kernel, const struct part *words)
{
	const uint8_t *k = kernel->bytes;
	int is_linux = kernel->size > 0x260 && get32(k + 0x202) == 0x53726448;
	uint32_t pe = kernel->size > 0x40 && k[0] == 'M' && k[1] == 'Z' ? get32(k + 0x3c) : 0;
	if (!pe || pe > kernel->size - 0x40 || pe + 0x80 > kernel->size || get32(k + pe) != 0x4550)
		give_up("kernel", is_linux ? ": has no EFI stub (CONFIG_EFI_STUB)" : ": is no EFI program, nor a Linux that has an EFI stub");
	if ((uint16_t)get32(k + pe + 4) != 0x8664)
		give_up("kernel", ": is an EFI program for another processor");
	if (is_linux && (uint16_t)get32(k + 0x206) >= 0x206 && words->size > get32(k + 0x238))
		give_up("cmdline", ": is longer than this kernel takes");
	return pe;
}

/* The kernel's options: words of 16 bits from UTF-8. `before` are words of ours. */
static uint16_t *widened(const struct part *words, const char *before, uint32_t *size)
{
	uint32_t own = 0;
	while (before[own])
		own++;
	uint16_t *wide = (uint16_t *)room("cmdline", 2 * (own + (uint64_t)words->size + 1)), *w = wide;
	while (*before)
		*w++ = (uint8_t)*before++;
	for (uint32_t i = 0; i < words->size; i++) {
		uint32_t c = words->bytes[i], more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
		if (c == 0 || c == '\n') /* Linux ends there */
			give_up("cmdline", ": has a line's end, or a zero, in it");
		if ((c >= 0x80 && c < 0xc2) || c > 0xf4 || more >= words->size - i)
			give_up("cmdline", ": is not UTF-8");
		c &= more ? 0x3fu >> more : 0x7f;
		for (; more; more--) {
			uint8_t next = words->bytes[++i];
			if ((next & 0xc0) != 0x80)
				give_up("cmdline", ": is not UTF-8");
			c = c << 6 | (next & 0x3f);
		}
		if (c >= 0x10000) {
			*w++ = (uint16_t)(0xd7c0 + (c >> 10));
			c = 0xdc00 | (c & 0x3ff);
		}
		*w++ = (uint16_t)c;
	}
	*w++ = 0;
	*size = (uint32_t)((uint8_t *)w - (uint8_t *)wide);
	return wide;
}

/* What the kernel calls, first to know how much there is. */
static efi_status EFI load_initrd(struct load_file *self, const efi_path *path, uint8_t by_policy, uint64_t *size, void *bytes)
{
	(void)self, (void)path;
	const struct part *initrd = &parts[2];
	if (by_policy)
		return UNSUPPORTED;
	uint64_t room = bytes ? *size : 0;
	*size = initrd->size;
	if (room < initrd->size)
		return BUFFER_TOO_SMALL;
	memcpy(bytes, initrd->bytes, initrd->size);
	return 0;
}

/* In the place of whatever else offers an initramfs there. Newer iPXEs do: all that they fetched, one behind the other. */
static void offer_initrd(int is_there)
{
	static struct load_file ours;
	const efi_path *rest = &initrd_path.node;
	efi_handle other, handle = 0;
	void *path;
	if (!boot->locate_device_path(&device_path_guid, &rest, &other) && rest->type == 0x7f && !boot->handle_protocol(other, &device_path_guid, &path))
		boot->uninstall(other, &device_path_guid, path, (void *)0);
	ours.load = load_initrd;
	efi_status status = 0;
	if (is_there)
		status = boot->install(&handle, &device_path_guid, &initrd_path, &load_file2_guid, &ours, (void *)0);
	if (status)
		refused("initrd", ": cannot be offered to the kernel: ", status);
}

efi_status EFI start(efi_handle image, struct system_table *system)
{
	struct loaded_image *self, *kernel;
	struct file_system *volume;
	struct file *folder;
	efi_handle handle;
	efi_status status;
	static char own[OWN_MAX];
	uint8_t key[KEY];

	boot = system->boot;
	if (boot->handle_protocol(image, &loaded_image_guid, &self) || boot->handle_protocol(self->device, &file_system_guid, &volume) ||
	    volume->open_volume(volume, &folder))
		give_up("loader", ": finds no files where it comes from");
	struct part *words = &parts[1];
	if (!read(folder, names[1], words))
		give_up("cmdline", ": is not there");
	if (words->size >= COMMAND_LINE_MAX)
		give_up("cmdline", ": is too long");
	uint64_t level = boot->raise_level(HIGHEST_LEVEL); /* the firmware, which looks for keys on that port now and then, would read its speed */
	open_serial((const char *)words->bytes);
	boot->restore_level(level);

	read_own(self, folder, own);
	read_key(own, key);
	int with_initrd = !!find(own, " initrd=");
	for (int i = 0; i < 2 + with_initrd; i++) {
		if (i != 1 && !read(folder, names[i], &parts[i]))
			give_up(names[i], ": is not there");
		check(i, parts[i].bytes, parts[i].size, own, key);
	}

	uint32_t pe = look_at(&parts[0], words);
	int is_old = !(uint16_t)get32(parts[0].bytes + pe + 24 + 44);
	offer_initrd(with_initrd && !is_old);
	kernel_path.first = (uint64_t)parts[0].bytes;
	kernel_path.last = kernel_path.first + parts[0].size;
	status = boot->load_image(0, image, &kernel_path.node, parts[0].bytes, parts[0].size, &handle);
	if (status)
		refused("kernel", ": is not taken by the firmware: ", status);
	boot->free_pages((uint64_t)parts[0].bytes, parts[0].size / 4096 + 1); /* the firmware has made an image of it */
	if ((status = boot->handle_protocol(handle, &loaded_image_guid, &kernel)))
		refused("kernel", ": was not loaded by the firmware: ", status);
	kernel->device = self->device;
	kernel->options = widened(words, is_old && with_initrd ? "initrd=initrd " : "", &kernel->options_size);
	status = boot->start_image(handle, 0, 0);
	refused("kernel", ": came back to the firmware: ", status);
}
