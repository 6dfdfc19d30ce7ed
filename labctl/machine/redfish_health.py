"""What a BMC knows of its machine's health, by Redfish: sensors, event log, who made it. By sushy, on a system that it has found.

Resources: DMTF DSP2046 (Thermal 1.x, Power 1.x, LogService, LogEntry, ComputerSystem). They are read as they are: sushy keeps what it read,
and knows neither a machine's draw nor its logs. A BMC that has only the newer ThermalSubsystem and Sensors is not understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from labctl.machine.lockfile import printable
from labctl.machine.plausible import is_plausible
from labctl.machine.protocols import HealthEvent, Reading
from labctl.machine.redfish import get, link_path, links, members

SAMPLED = {"degC": "machine_degc", "W": "machine_watts"}
_MOST = 1000
"""Entries of a log that are read."""
_PAGES = 100
_SHOWN = 3
"""Sensors that are named where all of them are wrong."""
_READ = (
    ("Thermal", "Temperatures", "ReadingCelsius", "degC"),
    ("Thermal", "Fans", "Reading", "rpm"),
    ("Power", "PowerControl", "PowerConsumedWatts", "W"),
    ("Power", "Voltages", "ReadingVolts", "V"),
)
"""Resource of a chassis, its list, the value there, its unit."""


class Nonsense(ValueError):
    """All that sensors of one kind say is what no machine has."""


def readings(system: Any) -> Iterator[Reading]:
    """Of the sensors that have a value now, and one that can be."""
    for _, name, value, unit in _said(system):
        if is_plausible(value, unit):
            yield Reading(name, float(value), unit)


def checked_readings(system: Any) -> tuple[Reading, ...]:
    """The same. Nonsense if there are sensors of a unit that say something, and none of them what can be."""
    found: dict[str, list[Reading]] = {}
    wrong: dict[str, list[str]] = {}
    for where, name, value, unit in _said(system):
        if is_plausible(value, unit):
            found.setdefault(unit, []).append(Reading(name, float(value), unit))
        else:
            wrong.setdefault(unit, []).append(f"{where}: {name} says {value!r:.40}")
    for unit, words in wrong.items():
        if unit not in found:
            raise Nonsense("; ".join(words[:_SHOWN]))
    return tuple(reading for each in found.values() for reading in each)


def _said(system: Any) -> Iterator[tuple[str, str, Any, str]]:
    """Where a sensor stands, its name, what it says, which may be anything but null, and its unit."""
    for path in links(system.json.get("Links"), "Chassis"):
        chassis = get(system, path)
        resources = {name: get(system, link_path(chassis.get(name))) for name in ("Thermal", "Power") if link_path(chassis.get(name))}
        for resource, listed, key, unit in _READ:
            for sensor in members(resources.get(resource, {}).get(listed)):
                percent = unit == "rpm" and sensor.get("ReadingUnits", "RPM") != "RPM"
                if sensor.get(key) is not None and not percent and _is_there(sensor):
                    yield f"{resource}/{listed}", _text(sensor.get("Name") or sensor.get("MemberId") or listed), sensor[key], unit


def beside_a_measurement(found: Mapping[str, str] | None, system: Any) -> tuple[dict[str, str], dict[str, float]]:
    """Sensors that say most, and what they say: those of an earlier call, else the hottest and the one of the largest draw."""
    now = list(readings(system))
    best = dict(found or {})
    for reading in sorted(now, key=lambda reading: reading.value) if found is None else ():
        if reading.unit in SAMPLED:
            best[reading.unit] = reading.name
    return best, {SAMPLED[r.unit]: r.value for r in now if best.get(r.unit) == r.name}


def latest_event(system: Any) -> int:
    """Number of the log's last entry; 0 if it is empty, or there is none."""
    return max((event.number for event in _entries(system)), default=0)


def events(system: Any, after: int) -> tuple[HealthEvent, ...]:
    """What was logged after the entry of that number, oldest first; everything if that one is no more."""
    found = sorted(_entries(system), key=lambda event: event.number)
    if after and after not in {event.number for event in found}:
        return tuple(found)
    return tuple(event for event in found if event.number > after)


def log_is_full(system: Any) -> bool:
    """Whether the event log holds as many entries as it can, and does not forget the oldest for a new one (LogService: OverWritePolicy)."""
    service = _event_log(system)
    most = service.get("MaxNumberOfRecords")
    if service.get("OverWritePolicy") != "NeverOverWrites" or not isinstance(most, int) or most <= 0:
        return False
    count = get(system, link_path(service.get("Entries"))).get("Members@odata.count")
    return isinstance(count, int) and count >= most


def inventory(system: Any) -> Mapping[str, str]:
    """Manufacturer, product, serial number, as far as the BMC tells."""
    said = {"manufacturer": system.manufacturer, "product": system.model, "serial": system.serial_number}
    return {key: text for key, value in said.items() if value and (text := _text(value))}


def _entries(system: Any) -> Iterator[HealthEvent]:
    service = _event_log(system)
    page = link_path(service.get("Entries"))
    left, pages = _MOST, _PAGES
    while page and left > 0 and pages > 0:
        content, pages = get(system, page), pages - 1
        for member in members(content.get("Members"))[:left]:
            entry = member if "Id" in member else get(system, link_path(member))
            left -= 1
            if number := re.search(r"\d{1,12}$", str(entry.get("Id", ""))):
                yield HealthEvent(int(number[0]), _seconds(entry.get("Created")), _words(entry))
        page = str(content.get("Members@odata.nextLink") or "")


def _event_log(system: Any) -> dict[str, Any]:
    """The one that is called a system event log, else the first; of the system, else of its BMC. Empty: there is none."""
    owners = [system.json, *(get(system, path) for path in links(system.json.get("Links"), "ManagedBy"))]
    first: dict[str, Any] = {}
    for owner in owners:
        if not (collection := link_path(owner.get("LogServices"))):
            continue
        for member in members(get(system, collection).get("Members")):
            service = member if "Entries" in member else get(system, link_path(member))
            if service.get("LogEntryType") == "SEL" or "sel" in str(service.get("Id", "")).lower():
                return service
            first = first or service
    return first


def _words(entry: Mapping[str, Any]) -> str:
    severity = entry.get("Severity")
    return _text(f"{entry.get('Message') or entry.get('Name') or 'no words'}" + (f" ({severity})" if severity else ""), 200)


def _seconds(created: object) -> float:
    try:
        return datetime.fromisoformat(str(created)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _is_there(sensor: Mapping[str, Any]) -> bool:
    """A bay that is empty has a sensor, and often a value."""
    status = sensor.get("Status")
    return not isinstance(status, dict) or status.get("State", "Enabled") == "Enabled"


def _text(value: object, most: int = 64) -> str:
    return printable(" ".join(str(value).split()))[:most]
