//! A federation that trains in no time.

/// A plan and a world of two clients that train in no time, in a folder of their own.
pub(crate) fn tiny() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // A table of one feature that is the label, in the format that needs no writer.
    let table: String = (0..120).map(|i| format!("{},{}\n", i % 2, i % 2)).collect();
    std::fs::write(path("table.csv"), table).unwrap();
    std::fs::write(
        path("world.toml"),
        "seed = 1\n[data]\ntrain = { kind = \"csv\", path = \"table.csv\", label = 1, header = false }\n\
         test = { kind = \"csv\", path = \"table.csv\", label = 1, header = false }\n\
         [partition]\nkind = \"iid\"\n",
    )
    .unwrap();
    std::fs::write(
        path("plan.toml"),
        "name = \"t\"\npurpose = \"A test.\"\nseed = 1\nrounds = 2\n\
         [data]\nshape = [1]\nclasses = 2\nnormalise = { mean = 0.5, std = 0.5 }\n\
         [model]\nlayers = [{ type = \"linear\", out = 2 }]\n\
         [training]\noptimizer = { type = \"sgd\", learning_rate = 0.5 }\n\
         batch = 10\nlocal_epochs = 1\nmicrobatch = 10\n\
         [privacy]\nmode = \"none\"\n\
         [cohort]\nmin_clients = 2\nmin_countries = 2\ngathering_deadline = \"1m\"\n\
         round_deadline = \"1m\"\nweights = \"uniform\"\n\
         clients = [{ id = \"KR/a\", records = 60 }, { id = \"JP/b\", records = 60 }]\n\
         [aggregation]\nstrategy = \"fedavg\"\nserver_learning_rate = 1.0\nfixed_point_bits = 22\n",
    )
    .unwrap();
    dir
}
