"""A small disk of a controller's own on the process bed, to be filled."""
import os
import pathlib

DISK_BYTES = 96 << 20   # prepared log files are 8 MiB each, and there are three


class Disk:
    """The small disk of a controller. It lives in the namespace of its host and goes away with it."""

    def __init__(self, controller):
        host = controller.host
        host.run(['mkdir', '-p', controller.data])
        host.run(['mount', '-t', 'tmpfs', '-o', f'size={DISK_BYTES}', 'disk', controller.data])
        # the directory as this machine sees it: through the host's first process
        controller.directory = pathlib.Path(f'/proc/{host.init}/root') / controller.data.relative_to('/')
        self.ballast = controller.directory / 'ballast'
        self.controller = controller

    def fill(self):
        """Take all that is left, down to the last page. A controller finds room in its own log on a full disk: whoever wants
        it to stay full takes that as well, again and again."""
        with open(self.ballast, 'ab', buffering=0) as ballast:
            size = ballast.seek(0, os.SEEK_END)
            for step in (1 << 20, 64 << 10, 4096):
                try:
                    while True:
                        os.posix_fallocate(ballast.fileno(), size, step)
                        size += step
                except OSError:
                    pass

    def free(self):
        self.ballast.unlink(missing_ok=True)
