"""How a run is made: its processes, its time limit, its report until it is whole."""
