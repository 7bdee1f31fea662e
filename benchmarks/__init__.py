"""Networks, data, scripts and peers with which qubo_compress is measured; not part of the installed library."""
