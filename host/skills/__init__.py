"""Skills in the Agent Skills format (https://agentskills.io/specification): folders with a SKILL.md."""
