"""`rankfold train-sweep`: a recipe trained at every point of a grid, by any number of processes that share one study.

grid.py      the points, each with the recipe that follows from it       words → Task
study.py     Optuna's study as a queue: what waits, runs, is done        Task → Study
point.py     one training, its networks and their scores                 Point → files
workers.py   points taken from the queue, by one process or several      Task → files
conclude.py  all networks measured side by side; the record              files → Sweep

    study.db                Optuna's storage, unless --storage names another
    runs/POINT/             each training; killed at any moment, it goes on from its checkpoint
    models/POINT.onnx       what came out, with its plan, parity and training record; dense.onnx: the recipe's network
    evaluation.json, bench.json, sweep.json, report.html
"""
