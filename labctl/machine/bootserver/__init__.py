"""The lab's boot server: what a machine boots over the network, offered by whoever holds the machine, for as long as he holds it.

`offer` is what is offered and by whom; `web` serves it over HTTP, in the process that holds the machine or as a service (`labctl
boot-server`); `dhcp` tells machines where it is, and gives them the first stage over TFTP.
"""
