"""The sandbox: files and commands of agents, only where the kernel lets them."""
