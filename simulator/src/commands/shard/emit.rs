//! What hands shards to a cluster: a script for Slurm, a manifest for Kubernetes.

use std::num::NonZero;

use anyhow::bail;
use clap::Args;
use serde_json::json;

/// What one shard gets of a cluster.
#[derive(Args)]
pub(crate) struct Machine {
    /// How many shards run at once; all of them if not given.
    #[arg(long, value_name = "K")]
    throttle: Option<NonZero<u32>>,
    /// Cores for each shard.
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: NonZero<u32>,
    /// Memory for each shard, such as 2G; of Kubernetes' units, such as 2Gi, with --emit kubernetes.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Kubernetes: image that holds comity-sim.
    #[arg(long, value_name = "IMAGE", default_value = "comity-sim:latest")]
    image: String,
    /// Kubernetes: claim of the volume that is the store's folder.
    #[arg(long, value_name = "NAME")]
    claim: Option<String>,
    /// Kubernetes: secret with the AWS_… variables of the store's bucket.
    #[arg(long, value_name = "NAME")]
    secret: Option<String>,
}

impl Machine {
    /// An array job for `sbatch`.
    pub(super) fn slurm(
        &self,
        name: &str,
        store: &str,
        plan: &str,
        shards: NonZero<u32>,
    ) -> String {
        let throttle = self.throttle.map(|k| format!("%{k}")).unwrap_or_default();
        let memory =
            self.memory.as_ref().map(|size| format!("#SBATCH --mem={size}\n")).unwrap_or_default();
        format!(
            "#!/bin/bash\n\
             #SBATCH --job-name={}\n\
             #SBATCH --array=0-{}{throttle}\n\
             #SBATCH --cpus-per-task={}\n\
             {memory}\
             #SBATCH --requeue\n\
             #SBATCH --output=comity-%A_%a.log\n\
             # A shard that is run again skips what is in the store, so this script can be submitted twice.\n\
             set -eu\n\
             exec comity-sim shard run {} --plan {plan} --threads \"${{SLURM_CPUS_PER_TASK:-{}}}\"\n",
            label(name),
            shards.get() - 1,
            self.cpus,
            quoted(store),
            self.cpus,
        )
    }

    /// An Indexed Job for `kubectl apply`. JSON is YAML, and needs no rules about quoting.
    pub(super) fn kubernetes(
        &self,
        name: &str,
        store: &str,
        plan: &str,
        shards: NonZero<u32>,
    ) -> anyhow::Result<String> {
        let is_bucket = store.contains("://");
        if !is_bucket && self.claim.is_none() {
            bail!("a store in a folder needs --claim NAME, the volume claim that holds it");
        }
        let mut container = json!({
            "name": "shard",
            "image": self.image,
            "command": [
                "comity-sim", "shard", "run", store, "--plan", plan,
                "--threads", self.cpus.to_string(),
            ],
            "resources": { "requests": { "cpu": self.cpus.to_string() } },
        });
        if let Some(memory) = &self.memory {
            container["resources"]["requests"]["memory"] = json!(memory);
            container["resources"]["limits"] = json!({ "memory": memory });
        }
        if let Some(secret) = &self.secret {
            container["envFrom"] = json!([{ "secretRef": { "name": secret } }]);
        }
        let mut pod = json!({ "restartPolicy": "Never", "containers": [] });
        if let (Some(claim), false) = (&self.claim, is_bucket) {
            container["volumeMounts"] = json!([{ "name": "store", "mountPath": store }]);
            pod["volumes"] = json!([{
                "name": "store",
                "persistentVolumeClaim": { "claimName": claim },
            }]);
        }
        pod["containers"] = json!([container]);
        let job = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": format!("{}-{}", label(name), &plan[..8]) },
            "spec": {
                "completionMode": "Indexed",
                "completions": shards,
                "parallelism": self.throttle.unwrap_or(shards),
                // A shard whose machine goes away is run again, and the others do not suffer.
                "backoffLimitPerIndex": 3,
                "template": { "spec": pod },
            },
        });
        Ok(format!("---\n{}", crate::output::json(&job)?))
    }
}

/// `name` as cluster labels allow it: RFC 1123, with room for a digest behind it.
fn label(name: &str) -> String {
    let kept = name.to_lowercase();
    let kept: String =
        kept.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let kept = kept.trim_matches('-');
    format!("comity-{}", if kept.is_empty() { "sweep" } else { kept })
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            throttle: NonZero::new(4),
            cpus: NonZero::new(2).unwrap(),
            memory: Some("2G".to_owned()),
            image: "registry.example/comity-sim:1".to_owned(),
            claim: Some("store".to_owned()),
            secret: None,
        }
    }

    #[test]
    fn a_slurm_script_is_an_array_over_all_shards() {
        let shards = NonZero::new(10).unwrap();
        let script = machine().slurm("Ärzte & co", "/a b/it's", "0123456789abcdef", shards);
        for line in [
            "#SBATCH --job-name=comity-rzte---co",
            "#SBATCH --array=0-9%4",
            "#SBATCH --cpus-per-task=2",
            "#SBATCH --mem=2G",
            "#SBATCH --requeue",
            "exec comity-sim shard run '/a b/it'\\''s' --plan 0123456789abcdef --threads \"${SLURM_CPUS_PER_TASK:-2}\"",
        ] {
            assert!(script.lines().any(|l| l == line), "{line} is not in\n{script}");
        }
    }

    #[test]
    fn a_kubernetes_job_is_indexed_and_tries_again_by_index() {
        let shards = NonZero::new(10).unwrap();
        let plan = "0123456789abcdef";
        let text = machine().kubernetes("x", "/store", plan, shards).unwrap();
        let job: serde_json::Value =
            serde_json::from_str(text.strip_prefix("---\n").unwrap()).unwrap();
        let spec = &job["spec"];
        assert_eq!(job["metadata"]["name"], "comity-x-01234567");
        assert_eq!((&spec["completions"], &spec["parallelism"]), (&json!(10), &json!(4)));
        assert_eq!(spec["completionMode"], "Indexed");
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["containers"][0]["volumeMounts"][0]["mountPath"], "/store");
        let without = Machine { claim: None, ..machine() };
        assert!(without.kubernetes("x", "/store", plan, shards).is_err());
        assert!(without.kubernetes("x", "s3://bucket/p", plan, shards).is_ok());
    }
}
