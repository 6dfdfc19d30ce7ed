"""What a BMC knows of its machine's health: sensors, event log, who made it. By python-ipmi, in a session that is open.

Sensors: IPMI 2.0, 35.14 and 43.1. Event log: 31.5 and 32.1. Inventory: Platform Management FRU Information Storage Definition 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from labctl.machine.lockfile import printable
from labctl.machine.plausible import is_plausible
from labctl.machine.protocols import HealthEvent, Reading

if TYPE_CHECKING:
    import pyipmi

_FULL_RECORD = 1
_THRESHOLD = 1
_UNITS = {1: "degC", 4: "V", 5: "A", 6: "W", 18: "rpm"}
"""IPMI 2.0, table 43-15: those that a machine's health is told in."""
SAMPLED = {"degC": "machine_degc", "W": "machine_watts"}
_ENTRY = 16
"""Bytes of an entry of the log."""
_LATEST = 0xFFFF
_END = 0xFFFF
_NOT_THERE = (0xC9, 0xCB)
"""Completion codes for an entry that is no more: the log was cleared."""
_KINDS = {0x01: "temperature", 0x02: "voltage", 0x04: "fan", 0x08: "power supply", 0x0C: "memory", 0x07: "processor", 0x12: "system event"}
_MOST = 1000
"""Entries that are read at a time: a BMC takes 20 ms and more for each."""


def readings(bmc: pyipmi.Ipmi) -> Iterator[tuple[Any, Reading]]:
    """Of the sensors that have a value now, in the units of health, each with its record for `read_one`."""
    for record in bmc.sdr_repository_entries():
        if record.type != _FULL_RECORD or record.event_reading_type_code != _THRESHOLD or record.units_2 not in _UNITS:
            continue
        if (found := read_one(bmc, record)) is not None:
            yield record, found


def beside_a_measurement(bmc: pyipmi.Ipmi) -> dict[str, Any]:
    """Records of the sensors that say most: the hottest, and the one of the largest draw."""
    best: dict[str, tuple[float, Any]] = {}
    for record, reading in readings(bmc):
        name = SAMPLED.get(reading.unit)
        if name is not None and reading.value > best.get(name, (float("-inf"), None))[0]:
            best[name] = (reading.value, record)
    return {name: record for name, (_, record) in best.items()}


def read_one(bmc: pyipmi.Ipmi, record: Any) -> Reading | None:
    import pyipmi.errors

    try:
        raw, _ = bmc.get_sensor_reading(record.number, record.owner_lun)
    except pyipmi.errors.CompletionCodeError:
        return None  # not present now, as a fan of a bay that is empty
    if raw is None:
        return None
    try:
        value, unit = float(record.convert_sensor_raw_to_value(raw)), _UNITS[record.units_2]
    except (ArithmeticError, ValueError):
        return None  # the record's own formula has no value there, as 1/x at 0
    return Reading(_text(record.device_id_string), value, unit) if is_plausible(value, unit) else None


def latest_event(bmc: pyipmi.Ipmi) -> int:
    """Number of the log's last entry; 0 if it is empty."""
    if not bmc.get_sel_entries_count():
        return 0
    entry, _ = bmc.get_sel_entry(_LATEST)
    return int(entry.record_id)


def events(bmc: pyipmi.Ipmi, after: int) -> tuple[HealthEvent, ...]:
    """What was logged after the entry of that number, oldest first; everything if that one is no more."""
    import pyipmi.errors

    if not bmc.get_sel_entries_count():
        return ()
    following = after
    try:
        if after:
            _, following = bmc.get_sel_entry(after)
    except pyipmi.errors.CompletionCodeError as error:
        if error.cc not in _NOT_THERE:
            raise
        following = 0
    found: list[HealthEvent] = []
    while following != _END and len(found) < _MOST:
        entry, following = bmc.get_sel_entry(following)
        found.append(_event(entry))
    return tuple(found)


def log_is_full(bmc: pyipmi.Ipmi) -> bool:
    """Whether the event log has no room, or has dropped entries for the want of it. Get SEL Info: IPMI 2.0, 31.2."""
    info = bmc.send_message_by_name("GetSelInfo")
    return bool(info.operation_support.overflow_flag or info.free_bytes < _ENTRY)


def _event(entry: Any) -> HealthEvent:
    if entry.type != entry.TYPE_SYSTEM_EVENT:
        return HealthEvent(entry.record_id, 0.0, f"a record of the vendor's own, type {entry.type:#04x}")
    kind = _KINDS.get(entry.sensor_type, f"sensor type {entry.sensor_type:#04x}")
    data = " ".join(f"{byte:02x}" for byte in entry.event_data)
    way = "deasserted" if entry.event_direction else "asserted"
    return HealthEvent(entry.record_id, float(entry.timestamp), f"{kind}, sensor {entry.sensor_number}: {way}, event {data}")


def inventory(bmc: pyipmi.Ipmi) -> Mapping[str, str]:
    """Manufacturer, product, serial number, as far as the BMC tells."""
    import pyipmi.errors

    try:
        fru = bmc.get_fru_inventory()
    except (pyipmi.errors.CompletionCodeError, pyipmi.errors.DecodingError, IndexError, ValueError):
        return {}  # vendors write this area as they like
    area = fru.product_info_area or fru.board_info_area
    if area is None:
        return {}
    names = {"manufacturer": ("manufacturer",), "product": ("name", "product_name"), "serial": ("serial_number",)}
    said = {key: next((_text(getattr(area, name)) for name in found if hasattr(area, name)), "") for key, found in names.items()}
    return {key: text for key, text in said.items() if text}


def _text(value: object) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return printable(text.strip("\0 "))[:64]
