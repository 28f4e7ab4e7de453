"""What the machine has: free memory, within the limits of the control group this process runs in."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def free_memory_bytes() -> int:
    """Memory that this process may still take without swapping: the system's, or its control group's if that is less.

    Page cache counts as free, since it is dropped on demand.
    """
    free = _meminfo_bytes("MemAvailable")
    group = _cgroup_free_bytes()
    return free if group is None else min(free, group)


def _meminfo_bytes(key: str) -> int:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return 1 << 62
    for line in lines:
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 1 << 62


def _cgroup_free_bytes() -> int | None:
    """Least room left on the way from this process's control group to the root; None without a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, names = _CGROUP_ROOT, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder = _CGROUP_ROOT / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = folder / path.lstrip("/")
        for place in (group, *group.parents):
            room = _room(place, *names)
            if room is not None:
                rooms.append(room)
            if place == folder:
                break
    return min(rooms, default=None)


def _room(group: Path, limit_name: str, usage_name: str, cache_key: str) -> int | None:
    try:
        limit = (group / limit_name).read_text().strip()
        usage = int((group / usage_name).read_text())
        stat = (group / "memory.stat").read_text()
    except (OSError, ValueError):
        return None
    if not limit.isdigit() or int(limit) >= 1 << 60:  # "max", or version 1's way to say it
        return None
    cache = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == cache_key), 0)
    return max(0, int(limit) - usage + cache)
