//! `icebox bill`: what boxes cost.

use super::client::{Client, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::types::{BoxBill, KeptBill, Usage};

/// The bill of one box, or of all with the total.
pub(crate) async fn bill(client: &Client, output: &Output, name: Option<&str>) -> Result<(), Error> {
    let answer = match name {
        Some(name) => {
            let id = client.find(name).await?.id;
            client.get(&["v1", "boxes", &id, "usage"], &[]).await?
        }
        None => client.get(&["v1", "usage"], &[]).await?,
    };
    if output.is_json() {
        return output.json(&answer);
    }
    match name {
        Some(_) => output.table(&table(&[read(answer)?], None)),
        None => {
            let mut usage: Usage = read(answer)?;
            usage.boxes.extend(usage.snapshots.take().and_then(|bill| as_line(bill, "snapshots")));
            usage.boxes.extend(usage.volumes.take().and_then(|bill| as_line(bill, "volumes")));
            output.table(&table(&usage.boxes, Some(&usage.totals)))?;
            if let Some(prices) = usage.prices {
                output.remark(&format!(
                    "${} per core-hour used, ${} per GB-month stored",
                    prices.dollars_per_core_hour, prices.dollars_per_gb_month
                ));
            }
            Ok(())
        }
    }
}

/// Snapshots are one line of the bill, if there were any, and so are volumes.
fn as_line(bill: KeptBill, what: &str) -> Option<BoxBill> {
    let line = BoxBill {
        id: format!("{} {what}", bill.count),
        gb_hours: bill.gb_hours,
        storage_dollars: bill.storage_dollars,
        total_dollars: bill.storage_dollars,
        ..BoxBill::default()
    };
    (bill.count > 0 || bill.gb_hours > 0.0).then_some(line)
}

fn table(bills: &[BoxBill], totals: Option<&BoxBill>) -> Table {
    let mut table = Table::new(&["ID", "NAME", "STATUS", ">CORE-SECONDS", ">GB-HOURS", ">CPU", ">STORAGE", ">TOTAL"]);
    let mut row = |id: &str, name: &str, bill: &BoxBill| {
        table.row([
            id.to_owned(),
            name.to_owned(),
            bill.status.clone(),
            human::quantity(bill.core_seconds),
            human::quantity(bill.gb_hours),
            human::dollars(bill.cpu_dollars),
            human::dollars(bill.storage_dollars),
            human::dollars(bill.total_dollars),
        ]);
    };
    for bill in bills {
        row(&bill.id, bill.name.as_deref().unwrap_or(""), bill);
    }
    if let Some(totals) = totals {
        row("total", "", totals);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_servers_own() {
        let one = BoxBill {
            id: "a-b-1".into(),
            name: Some("build".into()),
            status: "paused".into(),
            storage_bytes: None,
            core_seconds: 7_200.0,
            gb_hours: 1.25,
            cpu_dollars: 0.2,
            storage_dollars: 0.000_171,
            total_dollars: 0.200_171,
        };
        let totals = BoxBill { id: String::new(), status: String::new(), total_dollars: 0.5, ..one.clone() };
        assert_eq!(
            table(&[one], Some(&totals)).render(),
            "ID     NAME   STATUS  CORE-SECONDS  GB-HOURS        CPU    STORAGE      TOTAL\n\
             a-b-1  build  paused          7200     1.250  $0.200000  $0.000171  $0.200171\n\
             total                         7200     1.250  $0.200000  $0.000171  $0.500000\n"
        );
    }
}
