"""Which sites of a graph are quantized on a target, and how: graph x target x overrides -> Plan."""
