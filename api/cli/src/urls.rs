//! Ports of boxes that are reached from outside: `icebox url`, `icebox urls`.

use reqwest::Method;
use serde_json::json;

use super::args_more::UrlArgs;
use super::client::{Client, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;
use super::table::Table;
use super::types::{OpenedUrl, UrlList};

/// `icebox url`.
pub(crate) async fn url(client: &Client, output: &Output, url: UrlArgs) -> Result<(), Error> {
    let id = client.find(&url.name).await?.id;
    let port = url.port.to_string();
    if url.remove {
        let request = client.request(Method::DELETE, &["v2", "box", &id, "preview", &port], Patience::Record);
        return client.json(request).await.map(drop);
    }
    let body = json!({ "port": url.port, "bearer_token": url.bearer, "basic_auth": url.basic });
    // A box that sleeps is woken by it, one without processes started.
    let request = client.request(Method::POST, &["v2", "box", &id, "preview"], Patience::Work).json(&body);
    let answer = client.json(request).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let opened: OpenedUrl = read(answer)?;
    output.line(&human::plain(&opened.url))?;
    let secrets = [("token", opened.token), ("user", opened.username), ("password", opened.password)];
    for (name, secret) in secrets {
        if let Some(secret) = secret {
            output.line(&format!("{name} {}", human::plain(&secret)))?;
        }
    }
    if opened.host_url != opened.url && !opened.host_url.is_empty() {
        output.remark(&format!("in a browser on the machine of iceboxd: {}", human::plain(&opened.host_url)));
    }
    if url.bearer || url.basic {
        output.remark("this is shown once; making the URL again replaces it");
    } else {
        output.remark("anyone who knows this URL reaches the port; --bearer or --basic asks for credentials");
    }
    Ok(())
}

/// `icebox urls`.
pub(crate) async fn urls(client: &Client, output: &Output, name: &str) -> Result<(), Error> {
    let id = client.find(name).await?.id;
    let answer = client.get(&["v2", "box", &id, "preview"], &[]).await?;
    if output.is_json() {
        return output.json(&answer);
    }
    let mut table = Table::new(&[">PORT", "URL", "OPENS WITH", ">AGE"]);
    for url in read::<UrlList>(answer)?.previews {
        let opens_with = match (url.bearer_token, url.basic_auth) {
            (false, false) => "nothing",
            (true, false) => "token",
            (false, true) => "password",
            (true, true) => "token or password",
        };
        table.row([url.port.to_string(), url.url, opens_with.to_owned(), human::age(url.created_at)]);
    }
    output.table(&table)
}
