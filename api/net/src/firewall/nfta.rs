//! The numbers of nftables messages (`linux/netfilter/nf_tables.h`), by the kernel's names: attributes, flags, keys.
//!
//! An attribute's number is good within its own list only, so each list is a module here.

/// `enum nft_table_attributes` (`NFTA_TABLE_*`), and flags (`NFT_TABLE_F_*`).
pub(super) mod table {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 2;
    pub(in super::super) const USERDATA: u16 = 6;
    pub(in super::super) const F_OWNER: u32 = 0x2;
    pub(in super::super) const F_PERSIST: u32 = 0x4;
}

/// `enum nft_chain_attributes` (`NFTA_CHAIN_*`).
pub(super) mod chain {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const HOOK: u16 = 4;
    pub(in super::super) const POLICY: u16 = 5;
    pub(in super::super) const TYPE: u16 = 7;
}

/// `enum nft_hook_attributes` (`NFTA_HOOK_*`).
pub(super) mod hook {
    pub(in super::super) const HOOKNUM: u16 = 1;
    pub(in super::super) const PRIORITY: u16 = 2;
}

/// `enum nft_rule_attributes` (`NFTA_RULE_*`).
pub(super) mod rule {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const EXPRESSIONS: u16 = 4;
}

/// `enum nft_list_attributes` (`NFTA_LIST_*`).
pub(super) mod list {
    pub(in super::super) const ELEM: u16 = 1;
}

/// `enum nft_expr_attributes` (`NFTA_EXPR_*`).
pub(super) mod expr {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
}

/// `enum nft_data_attributes` (`NFTA_DATA_*`), and the type of verdicts (`NFT_DATA_VERDICT`).
pub(super) mod data {
    pub(in super::super) const VALUE: u16 = 1;
    pub(in super::super) const VERDICT: u16 = 2;
    pub(in super::super) const TYPE_VERDICT: u32 = 0xffff_ff00;
}

/// `enum nft_verdict_attributes` (`NFTA_VERDICT_*`), and the codes (`NF_*`, `NFT_*`).
pub(super) mod verdict {
    pub(in super::super) const CODE: u16 = 1;
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const NF_DROP: i32 = 0;
    pub(in super::super) const NF_ACCEPT: i32 = 1;
    pub(in super::super) const NFT_JUMP: i32 = -3;
    pub(in super::super) const NFT_GOTO: i32 = -4;
    pub(in super::super) const NFT_RETURN: i32 = -5;
}

/// `enum nft_set_attributes` (`NFTA_SET_*`), flags (`NFT_SET_*`), and what `nft` keeps with a set.
pub(super) mod set {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const KEY_TYPE: u16 = 4;
    pub(in super::super) const KEY_LEN: u16 = 5;
    pub(in super::super) const DATA_TYPE: u16 = 6;
    pub(in super::super) const DATA_LEN: u16 = 7;
    pub(in super::super) const DESC: u16 = 9;
    pub(in super::super) const ID: u16 = 10;
    pub(in super::super) const USERDATA: u16 = 13;
    pub(in super::super) const EXPR: u16 = 17;
    pub(in super::super) const INTERVAL: u32 = 0x4;
    pub(in super::super) const MAP: u32 = 0x8;
    pub(in super::super) const TIMEOUT: u32 = 0x10;
    pub(in super::super) const EVAL: u32 = 0x20;
    pub(in super::super) const CONCAT: u32 = 0x80;
}

/// `enum nft_set_desc_attributes` and `enum nft_set_field_attributes` (`NFTA_SET_DESC_*`, `NFTA_SET_FIELD_*`).
pub(super) mod set_desc {
    pub(in super::super) const CONCAT: u16 = 2;
    pub(in super::super) const FIELD_LEN: u16 = 1;
}

/// `enum nft_set_elem_attributes` (`NFTA_SET_ELEM_*`), and flags.
pub(super) mod set_elem {
    pub(in super::super) const KEY: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const TIMEOUT: u16 = 4;
    pub(in super::super) const EXPIRATION: u16 = 5;
    pub(in super::super) const EXPR: u16 = 7;
    pub(in super::super) const KEY_END: u16 = 10;
    pub(in super::super) const EXPRESSIONS: u16 = 11;
    pub(in super::super) const INTERVAL_END: u32 = 0x1;
}

/// `enum nft_set_elem_list_attributes` (`NFTA_SET_ELEM_LIST_*`).
pub(super) mod set_elem_list {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const SET: u16 = 2;
    pub(in super::super) const ELEMENTS: u16 = 3;
}

/// `enum nft_meta_attributes` (`NFTA_META_*`), and keys (`NFT_META_*`).
pub(super) mod meta {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const KEY: u16 = 2;
    pub(in super::super) const SREG: u16 = 3;
    pub(in super::super) const KEY_MARK: u32 = 3;
    pub(in super::super) const KEY_IIFNAME: u32 = 6;
    pub(in super::super) const KEY_OIFNAME: u32 = 7;
    pub(in super::super) const KEY_NFPROTO: u32 = 15;
    pub(in super::super) const KEY_L4PROTO: u32 = 16;
}

/// `enum nft_ct_attributes` (`NFTA_CT_*`), and keys (`NFT_CT_*`).
pub(super) mod ct {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const KEY: u16 = 2;
    pub(in super::super) const SREG: u16 = 4;
    pub(in super::super) const KEY_STATE: u32 = 0;
    pub(in super::super) const KEY_STATUS: u32 = 2;
    pub(in super::super) const KEY_MARK: u32 = 3;
}

/// `enum nft_payload_attributes` (`NFTA_PAYLOAD_*`), and bases (`NFT_PAYLOAD_*_HEADER`).
pub(super) mod payload {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const BASE: u16 = 2;
    pub(in super::super) const OFFSET: u16 = 3;
    pub(in super::super) const LEN: u16 = 4;
    pub(in super::super) const NETWORK: u32 = 1;
    pub(in super::super) const TRANSPORT: u32 = 2;
}

/// `enum nft_cmp_attributes` (`NFTA_CMP_*`), and operations (`NFT_CMP_*`).
pub(super) mod cmp {
    pub(in super::super) const SREG: u16 = 1;
    pub(in super::super) const OP: u16 = 2;
    pub(in super::super) const DATA: u16 = 3;
    pub(in super::super) const EQ: u32 = 0;
    pub(in super::super) const NEQ: u32 = 1;
    pub(in super::super) const LTE: u32 = 3;
}

/// `enum nft_bitwise_attributes` (`NFTA_BITWISE_*`).
pub(super) mod bitwise {
    pub(in super::super) const SREG: u16 = 1;
    pub(in super::super) const DREG: u16 = 2;
    pub(in super::super) const LEN: u16 = 3;
    pub(in super::super) const MASK: u16 = 4;
    pub(in super::super) const XOR: u16 = 5;
}

/// `enum nft_lookup_attributes` (`NFTA_LOOKUP_*`), and the flag `NFT_LOOKUP_F_INV`.
pub(super) mod lookup {
    pub(in super::super) const SET: u16 = 1;
    pub(in super::super) const SREG: u16 = 2;
    pub(in super::super) const DREG: u16 = 3;
    pub(in super::super) const SET_ID: u16 = 4;
    pub(in super::super) const FLAGS: u16 = 5;
    pub(in super::super) const F_INV: u32 = 1;
}

/// `enum nft_dynset_attributes` (`NFTA_DYNSET_*`), and the operation `NFT_DYNSET_OP_ADD`.
pub(super) mod dynset {
    pub(in super::super) const SET_NAME: u16 = 1;
    pub(in super::super) const SET_ID: u16 = 2;
    pub(in super::super) const OP: u16 = 3;
    pub(in super::super) const SREG_KEY: u16 = 4;
    pub(in super::super) const EXPR: u16 = 7;
    pub(in super::super) const OP_ADD: u32 = 0;
}

/// `enum nft_fib_attributes` (`NFTA_FIB_*`), the result `NFT_FIB_RESULT_ADDRTYPE`, and the flag `NFTA_FIB_F_DADDR`.
pub(super) mod fib {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const RESULT: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const RESULT_ADDRTYPE: u32 = 3;
    pub(in super::super) const F_DADDR: u32 = 0x2;
}

/// `enum nft_immediate_attributes` (`NFTA_IMMEDIATE_*`).
pub(super) mod immediate {
    pub(in super::super) const DREG: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
}

/// `enum nft_redir_attributes` (`NFTA_REDIR_*`).
pub(super) mod redir {
    pub(in super::super) const REG_PROTO_MIN: u16 = 1;
}

/// `enum nft_reject_attributes` (`NFTA_REJECT_*`), types (`NFT_REJECT_*`), and the code `NFT_REJECT_ICMPX_ADMIN_PROHIBITED`.
pub(super) mod reject {
    pub(in super::super) const TYPE: u16 = 1;
    pub(in super::super) const ICMP_CODE: u16 = 2;
    pub(in super::super) const TCP_RST: u32 = 1;
    pub(in super::super) const ICMPX_UNREACH: u32 = 2;
    pub(in super::super) const ADMIN_PROHIBITED: u8 = 3;
}

/// `enum nft_log_attributes` (`NFTA_LOG_*`).
pub(super) mod log {
    pub(in super::super) const GROUP: u16 = 1;
    pub(in super::super) const PREFIX: u16 = 2;
    pub(in super::super) const SNAPLEN: u16 = 3;
}

/// `enum nft_counter_attributes` (`NFTA_COUNTER_*`).
pub(super) mod counter {
    pub(in super::super) const BYTES: u16 = 1;
    pub(in super::super) const PACKETS: u16 = 2;
}

/// `enum nft_limit_attributes` (`NFTA_LIMIT_*`), types (`NFT_LIMIT_*`), and the flag `NFT_LIMIT_F_INV`.
pub(super) mod limit {
    pub(in super::super) const RATE: u16 = 1;
    pub(in super::super) const UNIT: u16 = 2;
    pub(in super::super) const BURST: u16 = 3;
    pub(in super::super) const TYPE: u16 = 4;
    pub(in super::super) const FLAGS: u16 = 5;
    pub(in super::super) const PKTS: u32 = 0;
    pub(in super::super) const PKT_BYTES: u32 = 1;
    pub(in super::super) const F_INV: u32 = 1;
}

/// `enum nft_connlimit_attributes` (`NFTA_CONNLIMIT_*`), and the flag `NFT_CONNLIMIT_F_INV`.
pub(super) mod connlimit {
    pub(in super::super) const COUNT: u16 = 1;
    pub(in super::super) const FLAGS: u16 = 2;
    pub(in super::super) const F_INV: u32 = 1;
}

/// `enum nft_registers` (`NFT_REG_*`, `NFT_REG32_*`). The numbers 1 to 4 are four words each and hold an interface name; those from 8 are one word each.
pub(super) mod register {
    pub(in super::super) const VERDICT: u32 = 0;
    pub(in super::super) const R1: u32 = 1;
    pub(in super::super) const R2: u32 = 2;
    pub(in super::super) const R32_01: u32 = 9;
    pub(in super::super) const R32_02: u32 = 10;
}

/// What `nft` keeps with a table and a set to print them (`enum nftnl_udata_*` of libnftnl): kinds, and byte orders.
pub(super) mod userdata {
    pub(in super::super) const TABLE_COMMENT: u8 = 0;
    pub(in super::super) const SET_KEYBYTEORDER: u8 = 0;
    pub(in super::super) const SET_DATABYTEORDER: u8 = 1;
    pub(in super::super) const HOST_ENDIAN: u32 = 1;
    pub(in super::super) const BIG_ENDIAN: u32 = 2;
}
