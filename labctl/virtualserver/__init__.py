"""A server on this host with a real BMC, so that what works on it works in a rack: see docs/virtual-server.md.

One keeper process holds its parts (`serve`), each in a module of its own: OpenIPMI's simulator (`bmc`), behind a relay that can lose and
delay its packets (`lan`); a QEMU machine that the BMC's chassis commands switch (`machine`); a serial hub between them (`hub`); and a
relay between the machine and the lab's boot server (`web`). With Redfish (`redfish`) the BMC offers its console by SSH too (`sshconsole`).
Nothing here is imported by a driver: a driver knows it as a rack's server.
"""
