"""Propose the next config from the log of a study."""

OPTIMIZERS = {
    "random": "sloguard.optim.random:RandomSearch",
    "tpe": "sloguard.optim.tpe:Tpe",
    "tba": "sloguard.optim.tba:ThermalAnnealing",
    "tba-tpe": "sloguard.optim.switch:AnnealThenTpe",
    "guided": "sloguard.optim.guided:Guided",
    "constrained-bo": "sloguard.optim.constrained:ConstrainedBo",
}
