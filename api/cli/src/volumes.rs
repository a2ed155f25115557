//! Verbs on volumes: create, ls, show, resize, rm.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::args_volume::{VolumeOption, VolumeVerb};
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;

#[derive(Debug, Clone, Deserialize)]
struct Volume {
    name: String,
    size_gib: u32,
    allocated_bytes: u64,
    #[serde(default)]
    boxes: Vec<VolumeBox>,
    waits_because: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct VolumeBox {
    id: String,
    path: String,
    read_only: bool,
}

/// `icebox volume …`.
pub(crate) async fn volume(client: &Client, output: &Output, verb: VolumeVerb) -> Result<(), Error> {
    match verb {
        VolumeVerb::Create { name, size } => {
            let body = json!({ "name": name, "size_gib": size });
            let request = client.request(Method::POST, &["v1", "volumes"], Patience::Work).json(&body);
            let answer = client.json(request).await?;
            if output.is_json() {
                return output.json(&answer);
            }
            output.line(&human::plain(&name))?;
            output.remark(&format!("`icebox create --volume {name}:/data` makes a box that has it"));
            Ok(())
        }
        VolumeVerb::Ls { quiet } => list(client, output, quiet).await,
        VolumeVerb::Show { name } => {
            let answer = client.get(&["v1", "volumes", &name], &[]).await?;
            if output.is_json() { output.json(&answer) } else { output.table(&table(&[read(answer)?])) }
        }
        VolumeVerb::Resize { name, size } => {
            let request = client.request(Method::POST, &["v1", "volumes", &name, "resize"], Patience::Work);
            let answer = client.json(request.json(&json!({ "size_gib": size }))).await?;
            if output.is_json() {
                return output.json(&answer);
            }
            let done: Volume = read(answer)?;
            output.line(&format!("{}  {} GiB", human::plain(&done.name), done.size_gib))?;
            if let Some(reason) = done.waits_because {
                output.remark(&format!("it grows when its box is restarted: {reason}"));
            }
            Ok(())
        }
        VolumeVerb::Rm { names } => {
            for name in names {
                client.json(client.request(Method::DELETE, &["v1", "volumes", &name], Patience::Work)).await?;
                output.line(&human::plain(&name))?;
            }
            Ok(())
        }
    }
}

async fn list(client: &Client, output: &Output, quiet: bool) -> Result<(), Error> {
    let mut answer = client.get(&["v1", "volumes"], &[]).await?;
    let records = answer["volumes"].take();
    if output.is_json() && !quiet {
        return output.json(&records);
    }
    let volumes: Vec<Volume> = read(records)?;
    if quiet {
        return volumes.iter().try_for_each(|one| output.line(&human::plain(&one.name)));
    }
    if volumes.is_empty() {
        output.remark("no volumes yet; `icebox volume create NAME` makes one");
    }
    output.table(&table(&volumes))
}

fn table(volumes: &[Volume]) -> Table {
    let mut table = Table::new(&["NAME", ">SIZE", ">ALLOCATED", "BOXES"]);
    for one in volumes {
        let user = |user: &VolumeBox| format!("{}:{}{}", user.id, user.path, if user.read_only { ":ro" } else { "" });
        table.row([
            one.name.clone(),
            format!("{} GiB", one.size_gib),
            human::bytes(one.allocated_bytes),
            one.boxes.iter().map(user).collect::<Vec<_>>().join(" "),
        ]);
    }
    table
}

/// The volumes in the body of a creation.
pub(crate) fn body_of(volumes: Vec<VolumeOption>) -> Option<Value> {
    let one = |volume: VolumeOption| json!({ "name": volume.name, "path": volume.path, "read_only": volume.read_only });
    (!volumes.is_empty()).then(|| volumes.into_iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_which_boxes_have_a_volume() {
        let user = |id: &str| VolumeBox { id: id.into(), path: "/data".into(), read_only: true };
        let one = Volume {
            name: "models".into(),
            size_gib: 50,
            allocated_bytes: 3 << 20,
            boxes: vec![user("a"), user("b")],
            waits_because: None,
        };
        assert_eq!(
            table(&[one]).render(),
            "NAME      SIZE  ALLOCATED  BOXES\n\
             models  50 GiB      3 MiB  a:/data:ro b:/data:ro\n"
        );
    }
}
