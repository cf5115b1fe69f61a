"""The lab: what it takes to run ShadowServe with real parts on one machine.

`home` and `setup` make environments, `guard` and `processes` run programs that leave nothing behind, `stack` puts
store, data plane, sidecars and engines together, `demo` shows them. Setting up needs the standard library only.
"""
