/* As much of the UEFI specification (2.10) as the loader uses: tables by their places, what is not called as `void *`. */
#include <stdint.h>

#define EFI __attribute__((ms_abi))
#define ERROR(code) ((efi_status)(code) | (efi_status)1 << 63)
#define UNSUPPORTED ERROR(3)
#define BUFFER_TOO_SMALL ERROR(5)
#define HIGHEST_LEVEL 31
#define ANY_PAGES 0
#define LOADER_DATA 2
#define READ_ONLY 1
#define END_OF_FILE UINT64_MAX

typedef uint64_t efi_status;
typedef void *efi_handle;
typedef struct { uint32_t a; uint16_t b, c; uint8_t d[8]; } efi_guid;

typedef struct { uint8_t type, subtype; uint16_t length; } __attribute__((packed)) efi_path; /* 10.2 */
#define PATH_END ((efi_path){ 0x7f, 0xff, sizeof(efi_path) })

struct boot_services { /* 4.4 */
	uint8_t header[24];
	uint64_t (EFI *raise_level)(uint64_t level);
	void (EFI *restore_level)(uint64_t level);
	efi_status (EFI *allocate_pages)(uint32_t how, uint32_t type, uint64_t pages, uint64_t *address);
	efi_status (EFI *free_pages)(uint64_t address, uint64_t pages);
	void *unused1[12];
	efi_status (EFI *handle_protocol)(efi_handle handle, const efi_guid *protocol, void *interface);
	void *unused2[3];
	efi_status (EFI *locate_device_path)(const efi_guid *protocol, const efi_path **path, efi_handle *handle);
	void *unused3;
	efi_status (EFI *load_image)(uint8_t by_policy, efi_handle parent, const efi_path *path, const void *bytes, uint64_t size, efi_handle *image);
	efi_status (EFI *start_image)(efi_handle image, uint64_t *exit_size, void *exit_data);
	void *unused4[14];
	efi_status (EFI *install)(efi_handle *handle, ...);
	efi_status (EFI *uninstall)(efi_handle handle, ...);
};

struct system_table { /* 4.3 */
	uint8_t header[24];
	void *unused[9];
	struct boot_services *boot;
};

struct loaded_image { /* 9.1 */
	uint64_t revision;
	efi_handle parent;
	struct system_table *system;
	efi_handle device;
	void *path, *reserved;
	uint32_t options_size;
	void *options;
};

struct file { /* 13.5 */
	uint64_t revision;
	efi_status (EFI *open)(struct file *folder, struct file **file, const uint16_t *name, uint64_t mode, uint64_t attributes);
	efi_status (EFI *close)(struct file *file);
	void *remove;
	efi_status (EFI *read)(struct file *file, uint64_t *size, void *bytes);
	void *write;
	efi_status (EFI *position)(struct file *file, uint64_t *at);
	efi_status (EFI *set_position)(struct file *file, uint64_t at);
};

struct file_system { /* 13.4 */
	uint64_t revision;
	efi_status (EFI *open_volume)(struct file_system *volume, struct file **root);
};

struct load_file { /* 13.2 */
	efi_status (EFI *load)(struct load_file *self, const efi_path *path, uint8_t by_policy, uint64_t *size, void *bytes);
};
