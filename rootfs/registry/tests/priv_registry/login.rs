//! Credentials go to the registry and its token service, and nowhere else.

use serde_json::json;

use crate::World;
use crate::hub::{Hub, layer, sha};
use crate::server::{Reply, Request, Server};

/// `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn image() -> (Hub, Vec<u8>) {
    let content = layer("x", 1000);
    let mut hub = Hub::new("team/app");
    hub.image("1", std::slice::from_ref(&content));
    (hub, content)
}

fn auth_for(host: &str) -> String {
    json!({"auths": {host: {"auth": &BASIC["Basic ".len()..]}}}).to_string()
}

/// A registry that wants tokens, and gives them itself.
fn with_tokens(hub: Hub, token_for: impl Fn(&Request) -> Option<String> + Send + Sync + 'static) -> Server {
    Server::start(move |request| {
        if request.path() == "/token" {
            return match token_for(request) {
                Some(token) => Reply::new(200, json!({"token": token, "expires_in": 60}).to_string()),
                None => Reply::new(401, r#"{"details":"incorrect username or password"}"#),
            };
        }
        if request.header("authorization") != Some("Bearer the-token") {
            let host = request.header("host").unwrap_or_default();
            let challenge =
                format!(r#"Bearer realm="http://{host}/token?x=1",service="the service",scope="registry:catalog:*""#);
            return Reply::new(401, "").with("WWW-Authenticate", challenge);
        }
        hub.answer(request)
    })
}

#[test]
fn priv_a_token_is_got_once_for_this_repository_and_by_the_credentials() {
    let (hub, _) = image();
    let server = with_tokens(hub, |request| {
        let query = request.target.split_once('?').map(|at| at.1).unwrap_or_default();
        let known = request.header("authorization") == Some(BASIC);
        // The registry's own proposal of a scope is not used.
        (known && query == "x=1&service=the+service&scope=repository%3Ateam%2Fapp%3Apull")
            .then(|| "the-token".to_owned())
    });
    let name = format!("{}/team/app:1", server.host());
    let world = World::new().auth(&auth_for(&server.host()));
    world.pulled(&name);
    assert_eq!(server.count("GET", "/token"), 1);
    let text = World::new().refused(&name);
    assert!(text.contains("gives no token without credentials") && text.contains("incorrect username"), "{text}");
    let other = json!({"auths": {server.host(): {"username": "me", "password": "wrong"}}}).to_string();
    let text = World::new().auth(&other).refused(&name);
    assert!(text.contains("gives no token with the credentials") && !text.contains("wrong"), "{text}");
}

#[test]
fn priv_an_identity_token_is_exchanged() {
    let (hub, _) = image();
    let server = with_tokens(hub, |request| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let good = request.method == "POST" && form.contains("grant_type=refresh_token&refresh_token=id%2Fentity");
        (good && request.header("authorization").is_none()).then(|| "the-token".to_owned())
    });
    let auth = json!({"auths": {server.host(): {"identitytoken": "id/entity"}}}).to_string();
    World::new().auth(&auth).pulled(&format!("{}/team/app:1", server.host()));
}

#[test]
fn priv_a_token_that_does_not_help_is_not_asked_for_again_and_again() {
    let (hub, _) = image();
    let server = with_tokens(hub, |_| Some("another".to_owned()));
    let text = World::new().refused(&format!("{}/team/app:1", server.host()));
    assert!(text.contains("does not allow it"), "{text}");
    assert_eq!((server.count("GET", "/token"), server.count("GET", "manifests/1")), (1, 2));
}

#[test]
fn priv_a_password_goes_to_its_registry_only() {
    let (hub, content) = image();
    let elsewhere = Server::start(hub.clone().answers());
    let (blob, target) = (format!("blobs/{}", sha(&content)), elsewhere.host());
    let server = Server::start(move |request| {
        if request.header("authorization") != Some(BASIC) {
            return Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#);
        }
        if hub.what(request) == blob {
            return Reply::new(307, "").with("Location", format!("http://{target}{}", request.target));
        }
        hub.answer(request)
    });
    let name = format!("{}/team/app:1", server.host());
    World::new().auth(&auth_for(&server.host())).pulled(&name);
    let got = elsewhere.requests();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].header("authorization"), None, "{got:?}");

    // Without one, and for another host.
    for auth in ["{}".to_owned(), auth_for(&elsewhere.host())] {
        let text = World::new().auth(&auth).refused(&name);
        assert!(text.contains("wants a user and a password") && text.contains("podman login"), "{text}");
    }

    // A challenge from the place that a redirect leads to is not answered.
    let host = elsewhere.host();
    let stranger = Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="x""#));
    let to = stranger.host();
    let leading =
        Server::start(move |request| Reply::new(302, "").with("Location", format!("http://{to}{}", request.target)));
    let text = World::new().auth(&auth_for(&leading.host())).refused(&format!("{}/team/app:1", leading.host()));
    assert!(text.contains("answers 401"), "{text} {host}");
    assert!(stranger.requests().iter().all(|request| request.header("authorization").is_none()));
}
