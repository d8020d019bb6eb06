"""The commands: `jaxcnn NAME`, or `python -m jaxcnn NAME`.

`main.py` finds the command and says what went wrong. Each of the other modules is a command, but
for `output.py` (what they share), `configs.py` (the shipped config files) and `settings.py` (the
keys of a config). A command imports JAX when it runs, so that `--help` need not wait for it.
"""
