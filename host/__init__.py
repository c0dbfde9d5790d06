from shared.processes import make_lazy

make_lazy("uvicorn")
