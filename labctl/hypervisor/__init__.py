"""VMs of a machine under test: the role Hypervisor, one hypervisor a file."""
