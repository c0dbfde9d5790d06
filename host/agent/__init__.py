from shared.lazy_packages import make_lazy

make_lazy("anthropic", "types")
