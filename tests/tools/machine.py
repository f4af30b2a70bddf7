"""What rows of tests/tools/results/ say of where they were measured."""
import platform, subprocess


def output(*command, cwd=None):
    """What a command prints; "" where it is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd).stdout.strip()
    except OSError:
        return ""


def cpu_name():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
