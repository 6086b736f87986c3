#!/usr/bin/python3
"""Talk to a QEMU of the lab: qmp.py SOCKET COMMAND [JSON ARGUMENTS] [COMMAND [JSON ARGUMENTS]]...

Prints what each command returned, if anything. The word `wait-migrate` in place of a command waits until a
migration is over (saving and restoring a machine are migrations too).
"""
import json
import socket
import sys
import time

POLL_S = 0.02


class Qmp:
    """One connection. @timeout_s: how long the socket may take to appear."""

    def __init__(self, path, timeout_s=30):
        end = time.monotonic() + timeout_s
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > end:
                    raise
                time.sleep(POLL_S)
        self.file = self.socket.makefile('rw')
        self.file.readline()  # the greeting
        self.command('qmp_capabilities')

    def command(self, name, arguments=None):
        request = {'execute': name}
        if arguments:
            request['arguments'] = arguments
        self.file.write(json.dumps(request) + '\n')
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise EOFError(f'{name}: the machine is gone')
            answer = json.loads(line)
            if 'error' in answer:
                raise RuntimeError(f'{name}: {answer["error"]["desc"]}')
            if 'return' in answer:
                return answer['return']
            # anything else is an event

    def wait_migrate(self, timeout_s=300):
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            state = self.command('query-migrate')
            if state.get('status') == 'completed':
                return state
            if state.get('status') in ('failed', 'cancelled'):
                raise RuntimeError(f'migration {state["status"]}: {state.get("error-desc", "")}')
            time.sleep(POLL_S)
        raise TimeoutError('migration')


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__.splitlines()[0])
    words = sys.argv[2:]
    try:
        qmp = Qmp(sys.argv[1])
        while words:
            name = words.pop(0)
            arguments = json.loads(words.pop(0)) if words and words[0].startswith('{') else None
            result = qmp.wait_migrate() if name == 'wait-migrate' else qmp.command(name, arguments)
            if result:
                print(json.dumps(result))
    except (OSError, EOFError, RuntimeError, TimeoutError) as problem:
        sys.exit(f'qmp: {sys.argv[1]}: {problem}')


if __name__ == '__main__':
    main()
