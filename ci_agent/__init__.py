"""The agent: runs the jobs of a pool on another host, and knows the control plane only by HTTP."""
