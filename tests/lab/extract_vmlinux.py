#!/usr/bin/python3
"""Write the ELF vmlinux that a bzImage carries: extract_vmlinux.py BZIMAGE VMLINUX

A kernel started from the ELF, through its PVH entry, need not unpack itself, which is slow where the CPU is emulated.
The place of the payload is in the setup header (Linux Documentation/arch/x86/boot.rst, payload_offset,
payload_length; protocol 2.08 and newer).
"""
import struct
import subprocess
import sys

# first bytes of the payload -> the command that unpacks it
UNPACKERS = (
    (b'\x02\x21\x4c\x18', ['lz4', '-dc']),
    (b'\xfd7zXZ', ['xz', '-dc', '--single-stream']),
    (b'\x28\xb5\x2f\xfd', ['zstd', '-dc']),
    (b'\x1f\x8b', ['gzip', '-dc']),
)


def payload(image):
    if image[0x202:0x206] != b'HdrS' or struct.unpack_from('<H', image, 0x206)[0] < 0x208:
        raise ValueError('not a bzImage of boot protocol 2.08 or newer')
    sectors = image[0x1f1] or 4
    offset, length = struct.unpack_from('<II', image, 0x248)
    start = (sectors + 1) * 512 + offset
    return image[start:start + length]


def unpack(packed):
    for magic, command in UNPACKERS:
        if packed.startswith(magic):
            # the last four bytes are the unpacked size, no part of the stream
            run = subprocess.run(command, input=packed[:-4], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            if run.stdout[:4] != b'\x7fELF':
                raise ValueError(f'{command[0]} did not give an ELF file: {run.stderr.decode(errors="replace")}')
            return run.stdout
    raise ValueError('unknown compression of the kernel')


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[0])
    try:
        with open(sys.argv[1], 'rb') as source:
            elf = unpack(payload(source.read()))
    except (OSError, ValueError) as problem:
        sys.exit(f'extract_vmlinux: {sys.argv[1]}: {problem}')
    with open(sys.argv[2], 'wb') as target:
        target.write(elf)


if __name__ == '__main__':
    main()
