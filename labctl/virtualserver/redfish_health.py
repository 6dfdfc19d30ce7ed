"""A virtual server's sensors, event log and inventory in Redfish: what its IPMI BMC says, for both are one machine's.

Routes for the Flask application of sushy-tools, whose own chassis has sensors that are the same for everybody. Resources: DMTF DSP2046.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from labctl.deadline import Deadline
from labctl.machine import ipmi_health
from labctl.machine.ipmi import Address, session
from labctl.virtualserver import bmc
from labctl.virtualserver.settings import SIMULATOR, Files, Settings

_PATIENCE = 20.0
_LOGS = "/redfish/v1/Systems/{system}/LogServices"
_PAGE = 100
"""Entries at a time, as real BMCs do."""


def add(app: Any, settings: Settings, files: Files, system: str) -> None:
    """Before the application serves."""
    address = Address(settings.name, SIMULATOR, settings.bmc_port, bmc.USER, f"file:{files.password}", 3)
    logs = _LOGS.format(system=system)

    def ask(question: Callable[[Any], Any]) -> Any:
        with session(address, Deadline.after(_PATIENCE)) as ipmi:
            return question(ipmi)

    def sensors(unit: str) -> list[Any]:
        return [reading for _, reading in ask(lambda ipmi: list(ipmi_health.readings(ipmi))) if reading.unit == unit]

    def thermal(identity: str) -> dict[str, Any]:
        return {
            "@odata.id": f"/redfish/v1/Chassis/{identity}/Thermal",
            "Id": "Thermal",
            "Name": "Thermal",
            "Temperatures": [_sensor(n, reading, "ReadingCelsius") for n, reading in enumerate(sensors("degC"))]
            # As of a socket without a processor.
            + [{"MemberId": "9", "Name": "CPU2 Temp", "ReadingCelsius": 0, "Status": {"State": "Absent"}}],
            "Fans": [],
        }

    def power(identity: str) -> dict[str, Any]:
        control = [_sensor(n, reading, "PowerConsumedWatts") for n, reading in enumerate(sensors("W"))]
        return {"@odata.id": f"/redfish/v1/Chassis/{identity}/Power", "Id": "Power", "Name": "Power", "PowerControl": control}

    def services() -> dict[str, Any]:
        return {"@odata.id": logs, "Name": "Log services", "Members": [{"@odata.id": f"{logs}/SEL"}]}

    def service() -> dict[str, Any]:
        told = {"Id": "SEL", "Name": "System Event Log", "LogEntryType": "SEL", "Entries": {"@odata.id": f"{logs}/SEL/Entries"}}
        return {"@odata.id": f"{logs}/SEL", **told, "MaxNumberOfRecords": bmc.SEL_ENTRIES, "OverWritePolicy": "NeverOverWrites"}

    def entries() -> dict[str, Any]:
        import flask

        first = int(flask.request.args.get("$skip", 0))
        found = ask(lambda ipmi: ipmi_health.events(ipmi, 0))
        members = [_entry(logs, event) for event in found[first : first + _PAGE]]
        page = {"@odata.id": f"{logs}/SEL/Entries", "Name": "Entries", "Members@odata.count": len(found), "Members": members}
        more = first + _PAGE < len(found)
        return {**page, **({"Members@odata.nextLink": f"{logs}/SEL/Entries?$skip={first + _PAGE}"} if more else {})}

    def more_of_the_system(response: Any) -> Any:
        made = ask(ipmi_health.inventory)
        told = {"Manufacturer": made.get("manufacturer"), "Model": made.get("product"), "SerialNumber": made.get("serial")}
        return {**response, **told, "LogServices": {"@odata.id": logs}}

    def more_of_the_chassis(response: Any) -> Any:
        return {**response, "Power": {"@odata.id": f"{response['@odata.id']}/Power"}}

    app.view_functions["thermal_resource"] = thermal
    app.add_url_rule("/redfish/v1/Chassis/<identity>/Power", "power_resource", power)
    app.add_url_rule(logs, "log_services", services)
    app.add_url_rule(f"{logs}/SEL", "log_service", service)
    app.add_url_rule(f"{logs}/SEL/Entries", "log_entries", entries)
    for name, more in {"system_resource": more_of_the_system, "chassis_resource": more_of_the_chassis}.items():
        app.view_functions[name] = wider(app.view_functions[name], more)


def wider(view: Callable[..., Any], more: Callable[[Any], Any]) -> Callable[..., Any]:
    """A view of one resource that tells more: what ``more`` makes of its content."""

    def told(identity: str) -> Any:
        import flask

        response = view(identity=identity)
        if flask.request.method == "GET" and response.status_code == 200:
            response.set_data(json.dumps(more(json.loads(response.get_data()))))
        return response

    return told


def _sensor(number: int, reading: Any, key: str) -> dict[str, Any]:
    return {"MemberId": str(number), "Name": reading.name, key: reading.value, "Status": {"State": "Enabled", "Health": "OK"}}


def _entry(logs: str, event: Any) -> dict[str, Any]:
    return {
        "@odata.id": f"{logs}/SEL/Entries/{event.number}",
        "Id": str(event.number),
        "Name": f"Entry {event.number}",
        "EntryType": "SEL",
        "Severity": "Warning",
        "Created": datetime.fromtimestamp(event.at, UTC).isoformat(),
        "Message": event.text,
    }
