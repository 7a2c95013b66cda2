"""Things that can run a config in real time, or pretend to. Each class is built by `from_setup(EngineSetup)`."""

ENGINES = {
    "vllm": "sloguard.engine.vllm:VllmEngine",
    "endpoint": "sloguard.engine.endpoint:EndpointEngine",
    "sim": "sloguard.engine.simulated:SimulatedEngine",
}
