from shared.processes import make_lazy

# Ends the spans of calls, which are not asked for: the host has its own.
make_lazy("anthropic", "types", "lib", late={"anthropic.lib._tracing.finish_api_call_span"})
