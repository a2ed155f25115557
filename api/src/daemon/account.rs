//! `iceboxd account`: accounts, while the daemon runs or not.

use std::process::ExitCode;

use super::args::AccountVerb;
use crate::config::Config;
use crate::db::{Db, NewKey, create_account};
use crate::error::Error;

pub(super) fn run(config: &Config, verb: &AccountVerb) -> Result<ExitCode, Error> {
    let connection = Db::connect(&config.data_dir)?;
    match verb {
        AccountVerb::Add { name } => {
            let key = NewKey::generate();
            create_account(&connection, name, &key)?;
            println!("{}", key.0);
        }
        AccountVerb::List => {
            let failed = |cause| Error::new("list the accounts", "", cause);
            let mut query = connection.prepare("SELECT name FROM accounts ORDER BY created_ms").map_err(failed)?;
            let names = query.query_map([], |row| row.get::<_, String>(0)).map_err(failed)?;
            for name in names {
                println!("{}", name.map_err(failed)?);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
