/* Booting by firmware instead of a kernel (boot.h): Debian's SeaBIOS or OVMF, or another image for the same platform.
 *
 *   4 GiB - image - variables   variable store (flash chip), UEFI only
 *   4 GiB - image               the image (read-only flash chip); the processor begins in its last 16 bytes
 *   1 MiB - 256 or 128 KiB      its end again as plain memory, written at each power-on: where a BIOS lives
 *
 * What the firmware wants to know of the machine it asks fw_cfg. */
#ifndef COMPUTE_VMM_MACHINE_FIRMWARE_H
#define COMPUTE_VMM_MACHINE_FIRMWARE_H

#include "common/error.h"
#include "compute/vmm/boot.h"
#include "schema/objects.h"

#define FIRMWARE_BIOS_PATH "/usr/share/seabios/bios-256k.bin"
#define FIRMWARE_UEFI_PATH "/usr/share/OVMF/OVMF_CODE_4M.fd"
#define FIRMWARE_UEFI_VARS_PATH "/usr/share/OVMF/OVMF_VARS_4M.fd"

#define FIRMWARE_FILES_MAX 2u

struct machine;
struct flash;
struct fw_cfg;

struct machine_firmware {
    bool present; /* the machine boots by firmware */
    struct fw_cfg *fw_cfg;
    struct flash *image, *variables; /* variables: NULL where there is no store */
    int log_fd;                      /* of firmware_log_path; -1: none */
    unsigned log_bytes;              /* written to it so far */
};

/* Files of the host that a machine so configured reads: its firmware, and what the VM's variables begin as. Returns
 * how many; the paths are borrowed from @config or constant. */
size_t machine_firmware_files(const struct vmm_config *config, const char *ret_paths[FIRMWARE_FILES_MAX]);
/* Exactly one way to boot is configured, and nothing that belongs to the other. Sets firmware.present. */
int machine_firmware_check(struct machine *m, struct error *err);
/* Flash chips, fw_cfg, debug port. */
int machine_firmware_add(struct machine *m, struct error *err);
/* At power-on, instead of boot_load: memory and fw_cfg as firmware expects them. @window64: first byte of the space
 * for 64-bit BARs. With the device lock held. */
int machine_firmware_load(struct machine *m, uint64_t window64, struct boot_entry *ret_entry, struct error *err);
void machine_firmware_finish(struct machine *m);

#endif
