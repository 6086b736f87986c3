"""A guest's side of a tap without a guest: carries frames between the tap and one end of a veth, so that whatever is at the
other end of the veth stands for the guest.

    tap_relay.py TAP VETH

Both sides speak struct virtio_net_hdr before each frame, so that offloads pass as they are. Ends with its standard
input, or by a signal."""
import fcntl
import os
import select
import socket
import struct
import sys

TUNSETIFF, TUNSETVNETHDRSZ = 0x400454ca, 0x400454d8
HEADER_BYTES = 10    # of packet sockets; a VMM has set 12
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3
FRAME_MAX = 70000


def main():
    tap = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack('16sH22x', sys.argv[1].encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack('i', HEADER_BYTES))
    veth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    veth.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    veth.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    veth.bind((sys.argv[2], ETH_P_ALL))
    print('relaying', flush=True)
    while True:
        for ready in select.select([tap, veth], [], [])[0]:
            try:
                if ready is tap:
                    veth.send(os.read(tap, FRAME_MAX))
                else:
                    os.write(tap, veth.recv(FRAME_MAX))
            except OSError as problem:
                print(problem, flush=True)


main()
